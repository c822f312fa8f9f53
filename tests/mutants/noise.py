"""Sabotages of what is released: clipped, summed and noised."""

from __future__ import annotations

from mutant import Mutant, of

HOOKS = "clients/training/noised_optimizer.py"
FOLDED = "clients/training/folded_privately.py"
NOISE = "fedpers/privacy/noise.py"
BOUNDED = of(
    "clients/training/test_private_steps.py",
    "test_one_example_changes_a_released_sum_by_at_most_the_clipping_norm",
)
SPREAD = of("clients/training/test_private_steps.py", "test_the_noise_has_the_declared_spread")
LOOP = of(
    "clients/training/test_folded_privately.py", "test_clipping_is_that_of_a_loop_over_examples"
)
SHARES = of(
    "strategies/sealed/test_shares.py", "test_shares_of_honest_clients_add_up_to_all_of_the_noise"
)
ACCOUNT = "fedpers/privacy/test_shares.py"
MASKED_NOISE = "fedpers/channels/masked/test_noise.py"
ALIKE = of(
    "clients/training/test_folded_privately.py",
    "test_private_groups_draw_clip_and_account_as_each_client_alone",
)

CLIPPING = [
    Mutant(
        "clip off, with hooks",
        HOOKS,
        "factors = clip_factors(norms, self.max_grad_norm)",
        "factors = torch.ones_like(norms)",
        BOUNDED,
    ),
    Mutant(
        "clip norm doubled, with hooks",
        HOOKS,
        "factors = clip_factors(norms, self.max_grad_norm)",
        "factors = clip_factors(norms, 2 * self.max_grad_norm)",
        BOUNDED,
    ),
    Mutant(
        "each tensor clipped for itself",
        HOOKS,
        'torch.einsum("i,i...", factors, row)',
        'torch.einsum("i,i...", (self.max_grad_norm / row.flatten(1).norm(dim=1)).clamp(max=1), '
        "row)",
        BOUNDED,
    ),
    Mutant(
        "clip off, in groups",
        FOLDED,
        "factors = clip_factors(squares.float().sqrt(), max_grad_norm)",
        "factors = torch.ones(shape, device=index.device)",
        LOOP,
    ),
    Mutant(
        "clip norm doubled, in groups",
        FOLDED,
        "factors = clip_factors(squares.float().sqrt(), max_grad_norm)",
        "factors = clip_factors(squares.float().sqrt(), 2 * max_grad_norm)",
        LOOP,
    ),
    Mutant(
        "biases left out of the norm, in groups",
        FOLDED,
        "squares += torch.linalg.vector_norm(g.sum(2), dim=2).double().square()",
        "squares += 0",
        LOOP,
    ),
    Mutant(
        "gradients that are not finite kept",
        "clients/training/clipping.py",
        ".clamp(max=1.0).nan_to_num(0.0)",
        ".clamp(max=1.0)",
        of("clients/test_finite.py", "test_factors_by_hand"),
    ),
    Mutant(
        "clip of a whole update off",
        "fedpers/channels/client_noise.py",
        "scales[client] = min(1.0, norm / length)",
        "scales[client] = 1.0",
        of("strategies/test_client_level.py", "test_the_mean_of_clipped_changes_by_hand"),
    ),
    Mutant(
        "counts not clipped per example",
        "clients/training/releasing.py",
        "factors = (1 / rows.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)",
        "factors = torch.ones(len(rows))",
        of("clients/test_confined.py", "test_an_example_adds_no_more_than_one_to_counts"),
    ),
]

ADDED_NOISE = [
    Mutant(
        "noise halved, with hooks",
        HOOKS,
        "self.mechanism.noised(sums, self.max_grad_norm, self.source)",
        "self.mechanism.noised(sums, self.max_grad_norm / 2, self.source)",
        SPREAD,
    ),
    Mutant(
        "noise halved, in groups",
        FOLDED,
        "release.mechanism.noised(torch.cat(sums), privacy.max_grad_norm, source)",
        "release.mechanism.noised(torch.cat(sums), privacy.max_grad_norm / 2, source)",
        ALIKE,
    ),
    Mutant(
        "noise off",
        NOISE,
        "        if deviation <= 0:\n",
        "        if deviation >= 0:\n",
        of("fedpers/privacy/test_noise.py", "test_noise_has_the_declared_spread_and_mean"),
    ),
    Mutant(
        "noise used again",
        NOISE,
        "return self._stream.update(bytes(count))",
        'self._kept = getattr(self, "_kept", b"") or self._stream.update(bytes(1 << 20))\n'
        "        return (self._kept * (count // len(self._kept) + 1))[:count]",
        of("fedpers/privacy/test_noise.py", "test_no_two_draws_of_a_source_are_the_same"),
    ),
    Mutant(
        "normals that were drawn ahead used again",
        NOISE,
        "found, self._ahead = self._ahead[:count], self._ahead[count:]",
        "found = self._ahead[:count].clone()",
        of("fedpers/privacy/test_noise.py", "test_no_two_draws_of_a_source_are_the_same"),
    ),
    Mutant(
        "grid rounding dropped",
        NOISE,
        ".add_(piece, alpha=1 / grid).round_()",
        ".add_(piece, alpha=1 / grid)",
        of("fedpers/privacy/test_noise.py", "test_a_noised_sum_lies_on_the_grid"),
    ),
    Mutant(
        "counts without noise",
        "clients/training/account.py",
        "return (self.once | self.each)[what].mechanism.noised(total, 1.0, source)",
        "return total",
        of("clients/training/test_account.py", "test_counts_are_paid_for_once_and_noised"),
    ),
    Mutant(
        "noise of counts halved",
        "clients/training/account.py",
        "return (self.once | self.each)[what].mechanism.noised(total, 1.0, source)",
        "return (self.once | self.each)[what].mechanism.noised(total, 0.5, source)",
        of("clients/training/test_account.py", "test_counts_are_paid_for_once_and_noised"),
    ),
    Mutant(
        "noise of a population halved",
        "fedpers/channels/client_noise.py",
        "total = self.mechanism.noised(total, norm, source)",
        "total = self.mechanism.noised(total, norm / 2, source)",
        of("strategies/test_client_level.py", "test_the_noise_has_the_declared_spread"),
    ),
    Mutant(
        "a cohort of which all fail releases nothing",
        "fedpers/channels/client_noise.py",
        "return 1 if self.shares else 0",
        "return 1",
        of(
            "strategies/test_client_level_rounds.py",
            "test_a_round_in_which_all_fail_is_noise_alone",
        ),
    ),
    Mutant(
        "a share of the noise too little",
        "fedpers/channels/client_noise_node.py",
        'int(noise["honest"])',
        'int(noise["honest"]) + 1',
        SHARES,
    ),
    Mutant(
        "one share missing",
        "fedpers/channels/client_noise.py",
        "return self.honest(cohort) + self.inner.corrupted(cohort)",
        "return self.honest(cohort) + self.inner.corrupted(cohort) - 1",
        of("strategies/sealed/test_shares.py", "test_a_round_with_too_few_shares_mixes_nothing"),
    ),
    Mutant(
        "integers longer than the account has them",
        "fedpers/privacy/shares.py",
        "            if self.allows(found):\n                return found\n",
        "            return found\n",
        of(ACCOUNT, "test_what_always_rounds_beyond_the_bound_is_cut_towards_zero_in_the_end"),
    ),
    Mutant(
        "rounding not in the sensitivity",
        "fedpers/privacy/shares.py",
        "return steps**2 + size // 4 + steps + math.isqrt(size) // 2",
        "return steps**2",
        of(ACCOUNT, "test_by_hand"),
    ),
    Mutant(
        "a coarse step let through",
        "fedpers/privacy/shares.py",
        "return bound <= (GROWTH * steps) ** 2 and",
        "return",
        of(ACCOUNT, "test_a_step_so_coarse_that_rounding_would_count_is_refused_with_the_cure"),
    ),
    Mutant(
        "noise of integers halved",
        "fedpers/privacy/shares.py",
        "return math.ceil(whole / self.honest)",
        "return math.ceil(whole / self.honest / 4)",
        of(ACCOUNT, "test_one_value_costs_what_a_gaussian_does"),
    ),
    Mutant(
        "a change that is too long not scaled",
        "fedpers/privacy/shares.py",
        "scale = self.steps / max(self.norm, float(np.linalg.norm(change)))",
        "scale = self.steps / self.norm",
        of(ACCOUNT, "test_no_change_is_longer_than_the_bound"),
    ),
    Mutant(
        "large integers less likely than they should be",
        "fedpers/privacy/discrete.py",
        "np.exp(-(x.astype(np.float64) ** 2) / (2.0 * variance))",
        "np.exp(-(x.astype(np.float64) ** 2) / (1.9 * variance))",
        of(
            "fedpers/privacy/test_discrete.py",
            "test_each_integer_is_as_likely_as_it_should_be",
        ),
    ),
    Mutant(
        "less noise than the settings come to, on the server's word",
        "fedpers/channels/client_noise_node.py",
        "if not sigma >= self.least * (1 - ROUNDING):",
        "if not sigma > 0:",
        of(MASKED_NOISE, "test_a_server_that_says_less_noise_than_is_due_gets_nothing"),
    ),
    Mutant(
        "no noise, on the server's word",
        "fedpers/channels/client_noise_node.py",
        "if self.untrusted and leaving.update:",
        "if False:",
        of(MASKED_NOISE, "test_a_server_that_says_less_noise_than_is_due_gets_nothing"),
    ),
    Mutant(
        "smaller shares, on the server's word",
        "fedpers/channels/masked/noise.py",
        "if not isinstance(one, NoisedField) or one.shares != shares:",
        "if not isinstance(one, NoisedField):",
        of(MASKED_NOISE, "test_a_server_that_says_less_noise_than_is_due_gets_nothing"),
    ),
    Mutant(
        "a sum with too little noise signed",
        "fedpers/channels/masked/noise.py",
        "    if len(survivors) < least:\n",
        "    if False:\n",
        of(MASKED_NOISE, "test_a_set_in_which_the_noise_is_not_whole_is_not_signed"),
    ),
]
