"""Sabotages of what keeps the rest inside: the plan, frozen methods, the door."""

from __future__ import annotations

from mutant import Mutant, of

CONFINED = [
    Mutant(
        "the plan not run",
        "clients/base.py",
        "    check_plan(name, algorithm, algorithm.initial.only(algorithm.sends))\n",
        "",
        of("fedpers/privacy/test_plan.py", "test_a_private_head_read_by_a_released_phase"),
    ),
    Mutant(
        "methods not frozen",
        "clients/base.py",
        "    algorithm.freeze()\n",
        "",
        of("clients/test_confined.py", "test_a_method_holds_no_state_in_a_private_run"),
    ),
    Mutant(
        "predictions get what trains",
        "clients/scoring.py",
        'predict("personal", host.algorithm.predict("personal", working, x, host.view))',
        "trainer = host._trainer(client, 1)\n"
        '        predict("personal", host.algorithm.predict("personal", working, x, trainer))',
        of(
            "clients/test_confined.py",
            "test_predictions_and_derived_parts_come_from_the_model_alone",
        ),
    ),
]

DOOR = [
    Mutant(
        "an error's text sent",
        "clients/failures.py",
        "closed = config.privacy.enabled or config.encryption.enabled or device is not None",
        "closed = False",
        of("clients/test_failures.py", "test_reasons_leave_where_nothing_is_to_be_hidden"),
    ),
    Mutant(
        "any text is a word",
        "clients/door.py",
        "    if value not in (SPENT, FAILED):\n        raise Undeclared\n    return str(value)",
        "    return str(value)",
        of("clients/test_door.py", "test_what_is_not_declared_is_not_sent"),
    ),
    Mutant(
        "losses sent without diagnostics",
        "clients/door.py",
        "    if not (asked.diagnostics or empty):\n        raise Undeclared\n",
        "",
        of("clients/test_door.py", "test_what_is_not_declared_is_not_sent"),
    ),
    Mutant(
        "seconds sent exactly",
        "clients/door.py",
        "return exact if asked.diagnostics else coarse(exact)",
        "return exact",
        of("clients/test_door.py", "test_times_leave_coarsely"),
    ),
    Mutant(
        "what is not declared is sent",
        "clients/door.py",
        "    return dict(_fields(field, value, asked, where))",
        "    return dict(value) | dict(_fields(field, value, asked, where))",
        of("clients/test_door.py", "test_what_is_not_declared_is_not_sent"),
    ),
    Mutant(
        "no door",
        "clients/answers.py",
        "return leave(kind, host, body, answered) if host.config.privacy.enabled else answered",
        "return answered",
        of("clients/test_door.py", "test_every_answer_goes_through_the_door"),
    ),
    Mutant(
        "exact numbers of examples sent",
        "clients/host.py",
        'report = {"examples": account.weight,',
        'report = {"examples": len(trainer.examples),',
        of(
            "clients/test_account.py",
            "test_a_host_charges_before_it_trains_and_in_every_process",
        ),
    ),
    Mutant(
        "sums divided by a number of examples that is protected",
        "clients/account.py",
        "return max(1.0, rate * self._count)",
        "return rate * examples",
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
