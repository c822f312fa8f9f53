"""Sabotages of where randomness comes from."""

from __future__ import annotations

from mutant import Mutant, of

FOLDED = "clients/training/folded_privately.py"
NOISE = "fedpers/privacy/noise.py"
DRAWN = of("test_randomness.py", "test_what_is_released_draws_from_a_source_alone")
ALIKE = of(
    "clients/training/test_folded_privately.py",
    "test_private_groups_draw_clip_and_account_as_each_client_alone",
)

RANDOMNESS = [
    Mutant(
        "key of 16 bits",
        NOISE,
        "return Source(os.urandom(32))",
        "return Source(os.urandom(2) * 16)",
        of("fedpers/privacy/test_noise.py", "test_keys_are_drawn_from_more_than_seeds_of_32_bits"),
    ),
    Mutant(
        "key of 32 bits",
        NOISE,
        "return Source(os.urandom(32))",
        "return Source(hashlib.sha256(os.urandom(4)).digest())",
        of("fedpers/privacy/test_noise.py", "test_keys_are_drawn_from_more_than_seeds_of_32_bits"),
    ),
    Mutant(
        "keys from the run's seed",
        NOISE,
        "return known(seed) if deterministic else secret",
        "return known(seed)",
        of("fedpers/privacy/test_noise.py", "test_who_is_not_a_test_gets_secret_sources"),
    ),
    Mutant(
        "a node's keys from the run's seed",
        "clients/node/keeper.py",
        "self.sources = sources or noise.sources(known, config.seed)",
        "self.sources = sources or noise.known(config.seed)",
        of("clients/test_private_draws.py", "test_a_private_round_comes_out_of_its_sources_alone"),
    ),
    Mutant(
        "a device's noise from the run's seed",
        "clients/node/keeper.py",
        "if known and config.privacy.enabled and device is not None:",
        "if False:",
        of("clients/node/test_device.py", "test_a_device_draws_no_noise_that_the_server_knows"),
    ),
    Mutant(
        "all rounds have one key",
        "clients/training/releasing.py",
        "return self.account.sources(self.server_round, self.client, purpose, *which)",
        "return self.account.sources(self.client, purpose, *which)",
        of("clients/test_sources.py", "test_each_round_client_and_purpose_has_a_source_of_its_own"),
    ),
    Mutant(
        "all clients of a group have one key",
        FOLDED,
        "account.sources(trainer.server_round, trainer.client, phase.name)",
        'account.sources(trainer.server_round, "0", phase.name)',
        ALIKE,
    ),
    Mutant(
        "shares of the noise from the run's seed",
        "fedpers/channels/client_noise_node.py",
        'self.sources("share", leaving.server_round, leaving.client)',
        '__import__("fedpers.privacy.noise").privacy.noise.known(0)("share", 1, leaving.client)',
        of("clients/test_private_draws.py", "test_shares_and_rounding_are_nobodys_to_know"),
    ),
    Mutant(
        "noise of masked sums from the run's seed",
        "fedpers/channels/masked/node.py",
        "draws = self.sources if self.config.privacy.enabled else known(self.config.seed)",
        "draws = known(self.config.seed)",
        of(
            "fedpers/channels/masked/test_noise.py",
            "test_noise_is_nobodys_to_know_unless_tests_ask",
        ),
    ),
    Mutant(
        "discrete Gaussians by numpy's generator",
        "fedpers/privacy/discrete.py",
        'np.frombuffer(source.bits(24 * candidates), "<u8")',
        "np.random.default_rng(0).integers(0, 2**64, 3 * candidates, np.uint64)",
        DRAWN,
    ),
    Mutant(
        "cohorts from the run's seed",
        "fedpers/channels/client_noise.py",
        'self.mechanism.sample(len(clients), self.sources("cohort", server_round))',
        'self.mechanism.sample(len(clients), sources(True, 0)("cohort", server_round))',
        of(
            "strategies/test_client_level.py", "test_who_took_part_cannot_be_computed_from_the_seed"
        ),
    ),
    Mutant(
        "a population's noise from the run's seed",
        "fedpers/channels/client_noise.py",
        "self.sources = sources(self.config.privacy.deterministic_for_tests, self.config.seed)",
        "self.sources = sources(True, self.config.seed)",
        of(
            "strategies/test_client_level.py",
            "test_the_noise_is_nobodys_to_know_unless_tests_ask_for_it",
        ),
    ),
    Mutant(
        "torch's float32 normals",
        NOISE,
        "self.normal(len(piece)) if",
        "torch.randn(len(piece)).double() if",
        DRAWN,
    ),
    Mutant(
        "uniforms of 24 bits",
        NOISE,
        "words = np.frombuffer(self.bits(8 * count), np.uint64) >> np.uint64(11)",
        "words = np.frombuffer(self.bits(8 * count), np.uint64) >> np.uint64(40) << np.uint64(29)",
        of("fedpers/privacy/test_noise.py", "test_uniforms_have_53_bits"),
    ),
    Mutant(
        "samples by torch's generator",
        NOISE,
        "return (self.uniform(examples) <= rate).nonzero().view(-1)",
        "return (torch.rand(examples) <= rate).nonzero().view(-1)",
        DRAWN,
    ),
    Mutant(
        "samples of a fixed size",
        NOISE,
        "return (self.uniform(examples) <= rate).nonzero().view(-1)",
        "return self.uniform(examples).argsort()[: round(rate * examples)].sort().values",
        of("fedpers/privacy/test_noise.py", "test_each_example_is_drawn_by_itself"),
    ),
    Mutant(
        "twice the sampling rate",
        NOISE,
        "return (self.uniform(examples) <= rate).nonzero().view(-1)",
        "return (self.uniform(examples) <= 2 * rate).nonzero().view(-1)",
        of("fedpers/privacy/test_noise.py", "test_each_example_is_drawn_by_itself"),
    ),
    Mutant(
        "the gate's noise by torch's generator",
        "clients/training/gradients.py",
        "self.model.source = self.account.sources(*path)",
        "self.model.source = None",
        of(
            "clients/test_private_draws.py",
            "test_what_is_random_in_a_private_forward_pass_is_nobodys_to_know",
        ),
    ),
    Mutant(
        "torch's generator in a private forward pass let through",
        "clients/training/gradients.py",
        "if drawn_from(self.device) != before:",
        "if False:",
        of(
            "clients/test_private_draws.py",
            "test_a_private_forward_pass_that_draws_from_torchs_generator_is_refused",
        ),
    ),
]
