"""Sabotages of what keeps the rest inside: the plan, frozen methods, the door."""

from __future__ import annotations

from mutant import Mutant, of

PLAN, VERDICT = "fedpers/privacy/plan.py", "clients/leaktest/verdict.py"
LEAKTEST = "fedpers/privacy/leaktest.py"


def leaking(method: str) -> tuple[str, ...]:
    """The test that the leak test refuses a method."""
    return of("leaks/test_families.py", f"test_a_method_that_leaks_is_refused[{method}]")


CONFINED = [
    Mutant(
        "the plan not run",
        "clients/admission.py",
        "    check_plan(name, algorithm, algorithm.declared, algorithm.config.rounds)\n",
        "",
        of("fedpers/privacy/test_plan.py", "test_a_private_head_read_by_a_released_phase"),
    ),
    Mutant(
        "the plan of one round alone",
        PLAN,
        "for server_round in range(1, rounds + 1):",
        "for server_round in (1,):",
        of(
            "fedpers/privacy/test_plan.py",
            "test_a_raw_part_that_comes_back_under_another_name_two_rounds_later",
        ),
    ),
    Mutant(
        "the plan with numbers of one size and sign",
        PLAN,
        'product((1.0, 1e-8, 1e-3, 1e3, 1e8), ("plus", "minus", "mixed"))',
        'product((1.0,), ("plus",))',
        of("fedpers/privacy/test_plan.py", "test_an_upload_made_of_a_raw_part"),
    ),
    Mutant(
        "the leak test not run",
        "clients/node/client_app.py",
        "check_leaks(host.config, *host.method, host.data, host.run)",
        "pass",
        of("clients/node/test_client_app.py", "test_a_node_refuses_a_method_that_leaks"),
    ),
    Mutant(
        "one verdict for all settings",
        VERDICT,
        "found = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())",
        "found = hashlib.sha256()",
        of(
            "clients/leaktest/test_verdict.py",
            "test_our_own_code_is_tried_anew_where_a_setting_matters",
        ),
    ),
    Mutant(
        "a verdict that outlives its code",
        VERDICT,
        "            found.update(hashlib.sha256(path.read_bytes()).digest())\n",
        "",
        of(
            "clients/leaktest/test_verdict.py",
            "test_code_from_outside_is_tried_in_a_process_of_its_own_and_once_a_run",
        ),
    ),
    Mutant(
        "others' gradients not compared",
        LEAKTEST,
        "if len(shares) and not float(shares.max()) <= OTHERS:",
        "if False:",
        leaking("across_the_batch:Weakly"),
    ),
    Mutant(
        "the last bits of an answer not compared",
        LEAKTEST,
        "difference(other, said, FOLDED if self.folded else 0.0)",
        "difference(other, said, 1e-6)",
        leaking("own_training:LastBits"),
    ),
    Mutant(
        "what code remembers not compared",
        LEAKTEST,
        "if not self.folded and (name := moved(self.before.state, state)) is not None:",
        "if False:",
        of(
            "fedpers/privacy/test_leaktest.py",
            "test_a_transcript_is_read_as_it_was_written",
        ),
    ),
    Mutant(
        "releases not held against the ledger",
        "clients/leaktest/rehearsal.py",
        "unpaid(transcript, charged, own.privacy.max_grad_norm)",
        "pass",
        leaking("own_releases:WithNoiseUnpaid"),
    ),
    Mutant(
        "methods not frozen",
        "clients/admission.py",
        "    algorithm.freeze()\n",
        "",
        of("clients/test_confined.py", "test_a_method_holds_no_state_in_a_private_run"),
    ),
    Mutant(
        "predictions get what trains",
        "clients/training/scoring.py",
        "view = Splits(self.model, self.algorithm, inputs)",
        "from clients.training.trainer import Trainer\n"
        "        known = (self.config, self.model, self.algorithm, split.train)\n"
        "        view = Trainer(*known, server_round=1, client=client)",
        of(
            "clients/test_confined.py",
            "test_predictions_and_derived_parts_come_from_the_model_alone",
        ),
    ),
]

DOOR = [
    Mutant(
        "an error's text sent",
        "clients/node/failures.py",
        "closed = config.confidential or device is not None",
        "closed = False",
        of("clients/node/test_failures.py", "test_reasons_leave_where_nothing_is_to_be_hidden"),
    ),
    Mutant(
        "any text is a word",
        "clients/node/door.py",
        "    if value not in (SPENT, FAILED):\n        raise Undeclared\n    return str(value)",
        "    return str(value)",
        of("clients/node/test_door.py", "test_what_is_not_declared_is_not_sent"),
    ),
    Mutant(
        "losses sent without diagnostics",
        "clients/node/door.py",
        "    if not (asked.diagnostics or empty):\n        raise Undeclared\n",
        "",
        of("clients/node/test_door.py", "test_what_is_not_declared_is_not_sent"),
    ),
    Mutant(
        "seconds sent exactly",
        "clients/node/door.py",
        "return exact if asked.diagnostics else coarse(exact)",
        "return exact",
        of("clients/node/test_door.py", "test_times_leave_coarsely"),
    ),
    Mutant(
        "what is not declared is sent",
        "clients/node/door.py",
        "    return dict(_fields(field, value, asked, where))",
        "    return dict(value) | dict(_fields(field, value, asked, where))",
        of("clients/node/test_door.py", "test_what_is_not_declared_is_not_sent"),
    ),
    Mutant(
        "no door",
        "clients/node/answers.py",
        "return leave(kind, host, body, answered) if host.config.privacy.enabled else answered",
        "return answered",
        of("clients/node/test_door.py", "test_every_answer_goes_through_the_door"),
    ),
    Mutant(
        "exact numbers of examples sent",
        "clients/node/host.py",
        'report = {"examples": account.weight,',
        'report = {"examples": len(trainer.examples),',
        of(
            "clients/training/test_account.py",
            "test_a_host_charges_before_it_trains_and_in_every_process",
        ),
    ),
    Mutant(
        "sums divided by a number of examples that is protected",
        "clients/training/account.py",
        "        return self._count\n",
        "        return examples\n",
        of(
            "clients/test_counts.py",
            "test_the_noise_tells_of_nothing_but_the_released_count",
        ),
    ),
    Mutant(
        "natural clients' rows made public",
        "fedpers/data/public.py",
        "return natural and not data.public_clients and data.public_fraction > 0",
        "return False",
        of(
            "fedpers/data/test_public.py",
            "test_under_privacy_no_natural_clients_rows_are_public_unless_that_is_said",
        ),
    ),
]
