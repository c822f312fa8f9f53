"""Sums that nobody can open: pairwise masks without a common key.

The protocol of Bonawitz et al. 2017 ("Practical Secure Aggregation", figure 4) over the graph of
Bell et al. 2020 ("SecAgg+"), with seeds derived for each round from long-lived keys and shared
inside the upload as in Flamingo (Ma et al. 2023), so that a round has one fat message and two thin
ones:

1. **AdvertiseKeys**, only where not all pairs mask: each client of the cohort says its contribution
   to the graph's seed.
2. **ShareKeys and MaskedInputCollection**: the masked vector, its seeds' shares boxed inside.
3. **ConsistencyCheck**: each survivor signs the set of survivors, one set a tag.
4. **Unmasking**: shares for that one set. The server takes the masks of the sum away.

Bytes and arrays in, bytes and arrays out: nothing here knows Flower, settings or nodes.
"""
