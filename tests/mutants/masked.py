"""Sabotages of masked sums: what a client serves once, and what it gives to whom."""

from __future__ import annotations

from mutant import Mutant, of

ROOM = "fedpers/channels/masked"
SERVER = f"{ROOM}/test_lying_server.py"
CLIENT = f"{ROOM}/test_lying_client.py"
GRAPH = f"{ROOM}/test_graph.py"

MASKED = [
    Mutant(
        "a tag is served twice",
        f"{ROOM}/memory.py",
        "if terms.tag <= served.tag:",
        "if terms.tag < served.tag:",
        of(f"{ROOM}/test_memory.py", "test_a_vector_is_masked_once_a_tag_whatever_the_words"),
    ),
    Mutant(
        "nothing is written before the upload",
        f"{ROOM}/memory.py",
        "        return replace(served, session=session.digest.hex(), upload=commitment.hex())",
        "        return served",
        of(f"{ROOM}/test_memory.py", "test_each_step_is_on_the_disk_before_its_message"),
    ),
    Mutant(
        "a second set of survivors is signed",
        f"{ROOM}/memory.py",
        "if served.survivors != survivors.hex():",
        "if not survivors:",
        of(SERVER, "test_a_second_set_is_signed_by_nobody_and_the_first_again"),
    ),
    Mutant(
        "shares without a quorum",
        f"{ROOM}/client.py",
        "if len(good) < session.quorum:",
        "if not good:",
        of(SERVER, "test_split_views_reach_no_quorum_even_if_the_corrupt_sign_both"),
    ),
    Mutant(
        "a quorum that forgets the corrupt",
        f"{ROOM}/graph.py",
        "return (clients + self.corrupted(clients)) // 2 + 1",
        "return clients // 2 + 1",
        of(GRAPH, "test_two_quorums_share_an_honest_client_whatever_the_shares"),
    ),
    Mutant(
        "a threshold that forgets the corrupt",
        f"{ROOM}/graph.py",
        "(clients - 1 + corrupt) // 2 + 1",
        "(clients - 1) // 2 + 1",
        of(GRAPH, "test_small_cohorts_mask_in_all_pairs"),
    ),
    Mutant(
        "shares of all pair seeds",
        f"{ROOM}/client.py",
        "(owner, *lost)]",
        "places]",
        of(
            SERVER,
            "test_of_no_client_both_the_own_seed_and_pair_seeds_with_survivors_come_out",
        ),
    ),
    Mutant(
        "shares of those that dropped out",
        f"{ROOM}/client.py",
        "            if owner not in survivors:\n                continue\n",
        "",
        of(
            SERVER,
            "test_of_no_client_both_the_own_seed_and_pair_seeds_with_survivors_come_out",
        ),
    ),
    Mutant(
        "the same pads under each tag",
        f"{ROOM}/session.py",
        "encode(terms.run, terms.round, terms.tag, terms.layout.signed)",
        "encode(terms.run, terms.layout.signed)",
        of(f"{ROOM}/test_view.py", "test_what_was_revealed_of_one_round_opens_nothing_of_the_next"),
    ),
    Mutant(
        "no own mask",
        f"{ROOM}/client.py",
        'secret("self mask", self.me).bits(shamir.BYTES)',
        "bytes(shamir.BYTES)",
        of(f"{ROOM}/test_view.py", "test_own_seeds_are_fresh_for_each_client_and_tag"),
    ),
    Mutant(
        "contributions that nobody checks",
        f"{ROOM}/session.py",
        "            self.registry.check_contribution(client, self.terms.tag, value)",
        "            continue",
        of(SERVER, "test_a_graph_s_seed_cannot_be_ground"),
    ),
    Mutant(
        "shares of whichever upload",
        f"{ROOM}/client.py",
        'b"fedpers masked shares" + session.digest + commitment',
        'b"fedpers masked shares" + session.digest',
        of(
            f"{ROOM}/test_restored.py",
            "test_of_two_uploads_under_one_tag_the_own_seed_of_one_comes_out_at_most",
        ),
    ),
    Mutant(
        "a graph may be cut",
        f"{ROOM}/session.py",
        "if not self.graph.holds(given.keys()):",
        "if not given:",
        of(SERVER, "test_a_set_that_cuts_the_graph_is_not_signed"),
    ),
    Mutant(
        "shares that nobody checks",
        f"{ROOM}/server.py",
        "for seed in seeds] == bound:",
        "for seed in seeds]:",
        of(CLIENT, "test_a_helper_s_garbage_is_passed_over_and_the_helper_suspected"),
    ),
]
