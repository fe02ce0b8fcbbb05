"""Tests that ``make test`` leaves to ``make test-all``: they take long, and seldom fail alone.

A line of ``THOROUGH`` is the beginning of a test's id. ``make test`` has a study of each kind, and
every parser, form, finding and verb; here are more moments, sizes, devices and pages of the same.
"""

import re

THOROUGH = (
    # machines: disks that fail, kill -9, time, hostile input
    "tests/faults/",
    "tests/fuzz/",
    "tests/study/test_study.py::test_killed_with_9_and_run_again_ends_with_the_same_records",
    "tests/study/test_variants_study.py::test_killed_while_a_variant_trains_it_resumes",
    "tests/study/test_search_study.py::test_a_search_that_is_stopped_again_and_again_ends_the_same",
    "tests/study/test_acceptance.py",
    "tests/study/test_verify.py",
    "tests/study/test_score_worker.py",
    "tests/study/test_references.py::test_a_killed_study_goes_on",
    "tests/study/test_quarters.py::test_a_study_that_was_killed_goes_on_with_its_quarter",
    "tests/study/test_growing.py::test_a_stopped_growth_goes_on_with_it",
    "tests/study/test_stopping.py::test_an_extension_that_was_stopped_goes_on",
    "tests/study/test_checkpoints.py::test_a_stopped_study_goes_on_to_the_same_checkpoints",
    "tests/engine/models/test_embedded.py::test_two_processes_at_once_make_one_folder",
    "tests/tasks/test_chat_templates.py::test_rows_that_each_take_long_are_too_long_together",
    "tests/study/test_adapter_repair.py::test_what_is_damaged_is_set_aside_and_made_again",
    "tests/scores/test_hostile_scores.py::test_of_a_line_beyond_the_limit_a_part_is_read",
    "tests/tasks/test_text_scores.py::test_long_texts_are_compared",
    "tests/cli/test_run_output.py::test_a_reader_that_goes_away_ends_it_with_a_sentence",
    "tests/cli/test_run_output.py::test_quiet_shows_the_verdict_alone",
    "tests/cli/test_ray.py",
    "tests/cli/test_ray_places.py",
    "tests/cli/test_users_files.py",
    "tests/cli/test_threads.py::test_threads_wait",
    "tests/cli/test_ascii_terminal.py::test_json_stays_json",
    "tests/test_architecture.py::test_the_check_above_would_see_torch",
    "tests/records/test_forged_names.py",
    "tests/test_no_network.py",
    # memory, and devices that are not here
    "tests/engine/training/test_memory.py::test_prediction_is_within_a_quarter_of_what_is_measured",
    "tests/engine/training/test_memory.py::test_experts_and_other_architectures_are_rehearsed",
    "tests/engine/training/test_memory.py::test_what_needs_less_is_estimated_to_need_less[cuda]",
    "tests/engine/scoring/test_resident_scorer.py::test_flex_attention_scores_the_same",
    "tests/engine/models/test_placed.py",
    "tests/study/test_placed_study.py::test_a_study_on_two_cards",
    "tests/engine/test_fake_cuda.py",
    "tests/engine/scoring/test_out_of_memory.py",
    "tests/study/test_fitting.py",
    "tests/study/test_presets.py::test_a_paper_s_study",
    "tests/test_gpu_checks.py",
    # the site, what its pages run; a browser's fixture marks others
    "tests/docs/test_run_commands.py",
    "tests/docs/test_site.py",
    "tests/test_notebook.py",
    "tests/test_examples.py",
    # other tools, whole
    "tests/integrations/test_tracking.py::test_trackio_has_it",
    "tests/integrations/test_tracking.py::test_mlflow_has_it",
    "tests/integrations/test_tracking.py::test_tensorboard_has_it",
    "tests/engine/training/test_preference_parity.py::test_a_study_from_a_start",
    "tests/integrations/test_retention_callback.py",
    "tests/integrations/test_hub.py",
    "tests/cli/test_lm_eval_model.py",
    # benchmarks
    "tests/test_study_benchmark.py",
    "tests/test_parity.py",
    "tests/test_preference_benchmark.py::test_losses_move_and_agree",
    "tests/findings/test_reference_benchmark.py",
    "tests/test_zoo.py",
    "tests/test_repair_benchmark.py",
    "tests/test_prediction_benchmark.py",
    "tests/test_collection_benchmarks.py",
    "tests/study/test_search_benchmark.py",
    "tests/findings/test_decision_benchmark.py",
    # studies that go on
    "tests/study/test_extension.py::test_what_a_verdict_advises_can_be_done",
    "tests/study/test_extension.py::test_more_items_are_scored_and_none_again",
    "tests/study/test_quarters.py::test_what_one_quarter_answered_is_kept_by_the_next",
    "tests/study/test_quarters.py::test_parts_that_are_estimated_from_references_grow_too",
    "tests/study/test_quarters.py::test_a_search_decides_on_whole_validation_items",
    "tests/study/test_quarters.py::test_where_a_quarter_cannot_be_planned_the_next_is",
    "tests/study/test_references.py::test_runs_that_were_scored_whole_stay_so",
    "tests/study/test_references.py::test_more_items_are_added_to_those_that_are_known",
    "tests/study/test_references.py::test_one_task_that_is_answered_whole_leaves_the_others",
    "tests/study/test_search_study.py::test_arms_are_of_what_the_search_leaves",
    "tests/study/test_search_study.py::test_full_fine_tuning_is_tuned_too",
    "tests/study/test_fewer_rows.py::test_a_group_gives_equal_shares_of_any_number",
    "tests/study/test_prompted_base.py::test_own_rows_stand_before_held_out_rows",
)

_FAMILIES = "(Qwen2|Qwen3|Gemma2|Gemma3|GPTNeoX|Phi3)"
"""Llama, GPT-2 (its matrices are transposed), Gemma 4 and GPT-OSS (their layers differ) stay."""

MORE = re.compile(
    "|".join(
        (
            # more families of models, of which `make test` has the most unlike
            rf"engine/scoring/test_decoding.py::test_every_family_writes.*\[{_FAMILIES}-",
            rf"engine/scoring/test_resident_scorer.py::test_base_and_adapters.*-{_FAMILIES}\]",
            rf"engine/models/test_variants.py::test_other_architectures\[.*-{_FAMILIES}\]",
            rf"engine/training/test_preference_parity.py::test_ranks_in_one.*\[{_FAMILIES}-",
            rf"heads/test_head_scorer.py::test_ablated_heads_.*\[{_FAMILIES}\]",
            # of variants all are trained, scored and reported
            r"engine/training/test_variant_training.py::.*\[(?!dora|adalora)\w+\]",
            # more sizes, settings and kinds of damage of one thing
            r"engine/scoring/test_resident_scorer.py::test_the_size_of_a_step.*\[default",
            r"engine/training/test_training_in_lanes.py::test_lanes_train_what.*-(0.0-3|0.2-2)\]",
            r"engine/training/test_training.py::test_many_together_equal_each_alone\[0.1\]",
            r"cli/test_terminal_card.py::test_a_study_ends_in_a.*\[(few items|worse)\]",
            r"cli/test_try.py::test_a_study_that_was_moved_goes_on\[(renamed|moved)\]",
            r"engine/training/test_preferences.py::test_ranks_in_one.*\[(stronger|smoothed)\]",
            r"study/test_damage.py::test_broken_weights.*\[(?!halved|another config)",
            r"study/test_damage.py::test_a_damaged_plan.*\[(?!half|one bit\]|a folder)",
            r"study/test_damage.py::test_a_broken_record_of_the_study.*\[(?!flipped)",
            r"study/test_imported_runs.py::test_an_adapter_so_large.*\[3e\+38\]",
            r"tasks/test_chat_templates.py::test_a_hostile_template_ends\[(?!loops|doubled)",
            r"tasks/test_answer_checks.py::test_an_answer_on_which_.*\[(?!pattern\]|regex0)",
            r"tasks/test_request_tokens.py::test_requests_are_lm_evals\[bos in the template",
            r"tasks/test_evaluation.py::test_equals_lm_eval\[.*-base-(2-shot|chat)",
        )
    )
)
"""Cases of tests that `make test` has in other cases, by the id after ``tests/``."""


def is_thorough(node_id: str) -> bool:
    """Whether `make test` leaves a test to `make test-all`."""
    return node_id.startswith(THOROUGH) or bool(MORE.match(node_id.removeprefix("tests/")))
