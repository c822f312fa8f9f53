"""Sabotages of what is counted and charged."""

from __future__ import annotations

from mutant import Mutant, of

LEDGER = "fedpers/privacy/ledger.py"
ACCOUNTING, COMPOSITION = "fedpers/privacy/accounting.py", "fedpers/privacy/composition.py"
GAUSSIAN = "fedpers/privacy/mechanisms/gaussian.py"
PHASES = of("clients/training/test_account.py", "test_the_noise_is_calibrated_for_the_whole_run")

ACCOUNT = [
    Mutant(
        "a charge skipped",
        "clients/training/account.py",
        "self.budget.charge([r for r in steps if r.steps] or steps, one_kind=not self.each)",
        "pass",
        PHASES,
    ),
    Mutant(
        "polls not charged",
        "clients/node/telling.py",
        "        account.charge_poll()\n",
        "        account._paid.update([POLL])\n",
        of(
            "clients/node/test_telling.py",
            "test_what_is_told_privately_is_noised_charged_and_said_again",
        ),
    ),
    Mutant(
        "any number of gradients for one charge",
        "clients/training/account.py",
        "        self._gradients_paid -= 1\n",
        "",
        of(
            "clients/training/test_releasing.py",
            "test_a_private_gradient_is_clipped_and_noised_per_example",
        ),
    ),
    Mutant(
        "sums noised as if nobody were counted",
        "clients/training/releasing.py",
        "rows = torch.cat([x, finite.float()], dim=1) / 2**0.5",
        "rows = torch.cat([x, finite.float()], dim=1)",
        of("clients/training/test_releasing.py", "test_sums_of_clipped_rows_by_hand"),
    ),
    Mutant(
        "what is told not clipped to its bounds",
        "clients/training/reporting.py",
        "clipped = value.detach().cpu().double().clamp(stat.low, stat.high)",
        "clipped = value.detach().cpu().double()",
        of(
            "clients/training/test_releasing.py",
            "test_what_is_told_privately_is_of_each_example",
        ),
    ),
    Mutant(
        "one number told without noise",
        "clients/training/reporting.py",
        "if trainer.account is None:\n        return {stat",
        "if True:\n        return {stat",
        of(
            "clients/training/test_releasing.py",
            "test_what_is_told_privately_is_of_each_example",
        ),
    ),
    Mutant(
        "steps taken without noise",
        "clients/training/gradients.py",
        "        if phase.released and self.account is not None:\n            raise ClientError(",
        "        if False:\n            raise ClientError(",
        of(
            "clients/training/test_steps.py",
            "test_what_adds_no_noise_is_refused_where_it_is_due",
        ),
    ),
    Mutant(
        "counts not charged",
        "clients/training/account.py",
        "self._pay([self.round], each | dict.fromkeys(once, 1))",
        "self._pay([self.round], each)\n        self._paid.update(once)",
        of("clients/training/test_account.py", "test_counts_are_paid_for_once_and_noised"),
    ),
    Mutant(
        "charged once for two phases",
        "clients/training/account.py",
        "steps=privacy.steps * self.phases + self.gradients",
        "steps=privacy.steps",
        PHASES,
    ),
    Mutant(
        "charged when all is trained",
        "clients/training/account.py",
        "self.budget.charge([r for r in steps if r.steps] or steps, one_kind=not self.each)",
        "def late() -> dict[str, float]:\n"
        "            del self.spending  # type: ignore\n"
        "            self.budget.charge(steps)\n"
        "            return self.spending()\n\n"
        "        self.spending = late  # type: ignore",
        of(
            "clients/training/test_account.py",
            "test_a_host_charges_before_it_trains_and_in_every_process",
        ),
    ),
    Mutant(
        "a population's round not charged",
        "fedpers/channels/client_noise.py",
        "self.budget.charge([Release(self.mechanism, 1)])",
        "pass",
        of(
            "strategies/test_client_level_rounds.py",
            "test_a_round_in_which_all_fail_is_noise_alone",
        ),
    ),
    Mutant(
        "any number of phases for one charge",
        "clients/training/account.py",
        "        self._phases_paid -= 1\n",
        "",
        of(
            "clients/training/test_account.py",
            "test_a_method_trains_no_more_released_phases_than_it_was_charged_for",
        ),
    ),
    Mutant(
        "counts as often as wanted for one charge",
        "clients/training/account.py",
        "        self._paid[what] -= 1\n",
        "",
        of("clients/training/test_account.py", "test_counts_are_paid_for_once_and_noised"),
    ),
    Mutant(
        "calibrated for one round less",
        "clients/training/account.py",
        "ceil(config.strategy.fraction * config.rounds)",
        "ceil(config.strategy.fraction * config.rounds) - 1",
        PHASES,
    ),
    Mutant(
        "budget checked a round late",
        LEDGER,
        "if steps > most_steps(self.epsilon, self.delta, growing, beside):",
        "if steps - releases[0].steps > most_steps(self.epsilon, self.delta, growing, beside):",
        of(
            "fedpers/privacy/test_ledger.py",
            "test_the_budget_charges_up_to_its_limit_and_not_a_step_further",
        ),
    ),
    Mutant(
        "a ledger in memory alone",
        LEDGER,
        "self._write(Kept(steps, kept.ledger or secrets.token_hex(16), kept.charges + 1))",
        "pass",
        of("fedpers/privacy/test_ledger.py", "test_a_charge_is_on_disk_when_it_returns"),
    ),
    Mutant(
        "a ledger not flushed",
        "fedpers/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        of("clients/node/test_device.py", "test_what_a_device_keeps_is_on_its_disk_and_its_own"),
    ),
    Mutant(
        "a ledger forgotten when it is opened",
        LEDGER,
        "self._steps = self._read().steps",
        "self._steps: dict[Mechanism, int] = {}",
        of("fedpers/privacy/test_ledger.py", "test_a_charge_is_on_disk_when_it_returns"),
    ),
    Mutant(
        "what others charged forgotten",
        LEDGER,
        "            kept = self._read()\n",
        "            kept = self._read()._replace(steps=self._steps)\n",
        of(
            "fedpers/privacy/test_ledger.py", "test_the_budget_counts_what_others_charged_meanwhile"
        ),
    ),
    Mutant(
        "a ledger that cannot be read begins anew",
        LEDGER,
        'raise self._refusal(f"cannot be read ({reason})", path) from error',
        "return None",
        of("fedpers/privacy/test_ledger.py", "test_what_cannot_be_read_is_refused_and_left_alone"),
    ),
    Mutant(
        "a ledger that is gone begins anew",
        LEDGER,
        'raise self._refusal("is gone")',
        "return receipt",
        of("clients/test_owner.py", "test_a_ledger_that_is_gone_is_no_fresh_start"),
    ),
    Mutant(
        "a ledger from an older backup taken",
        LEDGER,
        "if kept.charges < receipt.charges:",
        "if False:",
        of("clients/test_owner.py", "test_an_older_ledger_is_no_ledger"),
    ),
    Mutant(
        "a state folder for any client",
        "clients/node/device.py",
        "if owners and self.client not in owners:",
        "if False:",
        of("clients/test_owner.py", "test_the_folder_is_its_first_clients"),
    ),
    Mutant(
        "releases merged by their noise alone",
        LEDGER,
        "steps[release.mechanism] = steps.get(release.mechanism, 0) + release.steps",
        "like = [m for m in steps if m.sigma == release.mechanism.sigma]\n"
        "                key = min(like, key=lambda m: m.rate, default=release.mechanism)\n"
        "                steps[key] = steps.get(key, 0) + release.steps",
        of("fedpers/privacy/test_ledger.py", "test_equal_entries_are_one"),
    ),
    Mutant(
        "the last of equal releases counts",
        LEDGER,
        "steps[release.mechanism] = steps.get(release.mechanism, 0) + release.steps",
        "steps[release.mechanism] = release.steps",
        of("fedpers/privacy/test_ledger.py", "test_equal_entries_are_one"),
    ),
    Mutant(
        "rows of kinds that nothing knows left out",
        LEDGER,
        "raise self._refusal(why, path, cure) from error",
        "return None",
        of(
            "fedpers/privacy/mechanisms/test_rows.py",
            "test_a_kind_that_nothing_knows_is_one_line_and_counts",
        ),
    ),
    Mutant(
        "each row taken for Gaussian noise",
        "fedpers/privacy/mechanisms/base.py",
        "mechanism = mechanism_named(kind)(**fields)",
        'mechanism = mechanism_named("gaussian")(fields["sigma"], fields["rate"])',
        of("fedpers/privacy/mechanisms/test_rows.py", "test_a_row_has_all_that_a_mechanism_is"),
    ),
    Mutant(
        "an answer asked for twice is noised twice",
        "clients/node/host.py",
        "if asked and (answer := store.answer_to(asked)):",
        "if False and (answer := store.answer_to(asked)):",
        of("clients/test_sources.py", "test_a_question_that_comes_twice_gets_the_same_answer"),
    ),
]

FIGURES = [
    Mutant(
        "epsilon a little too small",
        ACCOUNTING,
        "min(at_most, float(",
        "min(at_most, 0.995 * float(",
        of(
            "fedpers/privacy/test_composition.py",
            "test_epsilon_is_what_an_independent_implementation_finds",
        ),
    ),
    Mutant(
        "epsilon of one direction alone",
        COMPOSITION,
        "PrivacyLossDistribution(*map(on_grid, mechanism.profiles()))",
        "PrivacyLossDistribution(on_grid(mechanism.profiles()[-1]))",
        of("fedpers/privacy/test_composition.py", "test_the_direction_that_costs_more_counts"),
    ),
    Mutant(
        "the square of the sampling rate",
        GAUSSIAN,
        "log_scale = math.log(rate) + ",
        "log_scale = 2 * math.log(rate) + ",
        of("fedpers/privacy/test_composition.py", "test_the_delta_of_a_step_is_its_integral"),
    ),
    Mutant(
        "whole batches do not add up",
        ACCOUNTING,
        "mu_squared += mechanism.mu_squared(steps)",
        "mu_squared = max(mu_squared, mechanism.mu_squared(steps))",
        of("fedpers/privacy/test_accounting.py", "test_one_full_gaussian_release_by_hand"),
    ),
    Mutant(
        "beside another mechanism Gaussian releases cost nothing",
        ACCOUNTING,
        "composed((*others[:-1], *_gaussian(mu_squared), others[-1]))",
        "composed(others)",
        of("fedpers/privacy/mechanisms/test_second.py", "test_two_kinds_together_by_hand"),
    ),
    Mutant(
        "like releases as if all had the most noise",
        COMPOSITION,
        "sigma, rate = min(m.sigma for m in every)",
        "sigma, rate = max(m.sigma for m in every)",
        of(
            "fedpers/privacy/test_composition.py",
            "test_many_kinds_become_few_that_cost_no_less",
        ),
    ),
    Mutant(
        "one delta, however many examples",
        ACCOUNTING,
        "    while delta * 2 * max(examples, 1) >= 1:\n        delta /= 10\n",
        "",
        of("fedpers/privacy/test_accounting.py", "test_the_default_delta_is_below_one_over_n"),
    ),
    Mutant(
        "delta ten times as large",
        LEDGER,
        "return epsilon_of(self.releases, delta)",
        "return epsilon_of(self.releases, 10 * delta)",
        of("clients/training/test_account.py", "test_a_delta_of_ones_own_is_taken"),
    ),
    Mutant(
        "other releases left out of the budget",
        LEDGER,
        "beside = tuple(r for r in everything if r.mechanism != growing)",
        "beside: tuple[Release, ...] = ()",
        of("fedpers/privacy/test_ledger.py", "test_the_budget_counts_releases_of_all_kinds"),
    ),
    Mutant(
        "figures rounded down",
        ACCOUNTING,
        "quantize(Decimal(1).scaleb(-digits), ROUND_CEILING)",
        'quantize(Decimal(1).scaleb(-digits), "ROUND_FLOOR")',
        of("fedpers/privacy/test_accounting.py", "test_figures_are_rounded_up"),
    ),
]
