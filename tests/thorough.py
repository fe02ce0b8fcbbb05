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
    "tests/study/test_rank_patterns.py::test_killed_while_it_trains",
    "tests/study/test_variants_study.py::test_killed_while_a_variant_trains_it_resumes",
    "tests/study/test_search_study.py::test_a_search_that_is_stopped_again_and_again_ends_the_same",
    "tests/study/test_acceptance.py",
    "tests/study/test_verify.py",
    "tests/study/test_score_worker.py",
    "tests/study/test_references.py::test_a_killed_study_goes_on",
    "tests/study/test_quarters.py::test_a_study_that_was_killed_goes_on_with_its_quarter",
    "tests/study/test_growing.py::test_a_stopped_growth_goes_on_with_it",
    "tests/study/test_on_policy_studies.py::test_a_stopped_training_goes_on",
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
    "tests/cli/test_strange_machines.py::test_a_study",
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
    "tests/integrations/test_tracking.py",
    "tests/engine/training/test_preference_parity.py::test_a_study_from_a_start",
    "tests/integrations/test_retention_callback.py",
    "tests/integrations/test_hub.py",
    "tests/cli/test_lm_eval_model.py",
    # benchmarks
    "tests/test_study_benchmark.py",
    "tests/test_parity.py",
    "tests/test_on_policy_benchmark.py::test_both_sides_take_the_same_steps",
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
    "tests/study/test_extension.py::test_scores_of_the_first_items_are_kept",
    "tests/study/test_extension.py::test_other_settings_are_scored_from_the_beginning",
    "tests/study/test_extension.py::test_extend_is_a_verb",
    "tests/study/test_study.py::test_adding_a_rank_a_seed_and_a_task_repeats_nothing",
    "tests/study/test_quarters.py::test_a_study_that_no_look_settles_does_its_whole_plan",
    "tests/study/test_references.py::test_tasks_of_which_the_references_tell_too_little",
    "tests/study/test_references.py::test_what_is_answered_is_answered_as_in_the_whole",
    "tests/study/test_references.py::test_a_study_that_was_scored_whole_goes_on_in_part",
    "tests/study/test_search_study.py::test_what_a_search_dropped_is_trained_again",
    "tests/study/test_search_study.py::test_only_what_is_left_answers_test_items",
    "tests/study/test_fewer_rows.py::test_more_rows_repeat_nothing",
    "tests/study/test_fewer_rows.py::test_at_equal_steps_fewer_rows_are_read_more_often",
    "tests/study/test_adapter_repair.py::test_a_study_that_goes_on_keeps_the_repair",
    "tests/study/test_adapter_repair.py::test_the_page_has_the_repair_of_a_run_as_it_is_now",
    "tests/study/test_deployed_forms.py::test_a_finished_check_is_not_done_again",
    "tests/study/test_imported_runs.py::test_an_import_stands_beside_trained_ranks",
    "tests/study/test_speeds.py::test_the_next_study_of_a_base_is_timed_by_the_last",
    # a second study of a kind
    "tests/study/test_study.py::test_own_data_is_trained_on_and_scored_by_loss",
    "tests/study/test_study.py::test_a_group_is_trained_on_in_equal_shares",
    "tests/study/test_study.py::test_a_study_says_how_long_each_part_took",
    "tests/study/test_study.py::test_shared_real_items_run_to_a_recommendation",
    "tests/study/test_stages.py::test_the_command_says_what_failed_and_ends_with_1",
    "tests/study/test_preference_studies.py::test_the_other_answer_is_another_training",
    "tests/study/test_own_sets.py::test_items_without_a_number_are_left_out_for_all_models",
    "tests/study/test_head_study.py::test_a_full_fine_tuning_is_ablated_by_means",
    "tests/study/test_head_study.py::test_a_screen_scores_the_first_heads_exactly",
    "tests/study/test_checkpoints.py::test_a_checkpoint_is_what_a_training_of_so_many_steps",
    "tests/study/test_checkpoints.py::test_where_nothing_is_lost_every_training_ends_at_its_end",
    "tests/study/test_mitigated_runs.py::test_an_arm_changes_no_other",
    "tests/study/test_asking.py::test_sampled_answers_are_those_of_their_seed",
    "tests/study/test_asking.py::test_what_cannot_be_asked",
    "tests/weights/test_audit_scores.py::test_a_chat_template_is_recorded",
    "tests/weights/test_audit_scores.py::test_an_adapter_and_its_merged_checkpoint",
    "tests/tasks/test_columns.py::test_a_guess_is_said_before_training_and_kept",
    "tests/tasks/test_same_text.py::test_where_learning_starts_is_in_a_run_s_fingerprint",
    "tests/tasks/test_overlap.py::test_own_rows_are_held_against_the_tasks",
    "tests/cli/test_run_output.py::test_quiet_tells_of_what_fails",
    "tests/cli/test_run_output.py::test_a_failure_that_leaves_a_verdict_is_incomplete",
    "tests/cli/test_plan_elsewhere.py::test_plan_keeps_what_the_folder_s_study_took",
    "tests/cli/test_plan_elsewhere.py::test_what_does_not_fit_a_card_is_refused",
    "tests/cli/test_try.py::test_the_largest_size_that_fits_is_taken",
    "tests/cli/test_deployment_verbs.py::test_rows_of_one_conversation_are_one_cluster",
    "tests/test_other_systems.py::test_every_module_is_imported_without_those_of_posix",
    # simulations: how often a rule errs
    "tests/findings/test_mitigated_arms.py::test_an_arm_that_does_what_a_rate_does_is_seldom",
    "tests/findings/test_repair_choice.py::test_candidates_that_all_lose_too_much_are_seldom",
    "tests/findings/test_recommendation.py::test_wrong_recommendations_are_rare",
    "tests/findings/test_reference.py::test_the_variance_in_clusters_is_that_of_repeated",
    "tests/findings/test_true_sentences.py::test_full_fine_tuning_is_better_only_where_both",
    "tests/findings/test_true_sentences.py::test_the_task_that_loses_most_is_named_where",
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
            r"cli/test_terminal_card.py::test_a_study_ends_in_a.*\[(?!settled)",
            r"bad_input/test_bad_arguments.py::test_arguments_of_no_use.*\[task unknown",
            r"cli/test_json.py::test_the_answer_is_json_alone.*\[(try|repair)\]",
            r"findings/test_true_sentences.py::test_no_text_contradicts.*\[[1-9]",
            r"study/test_asking.py::test_base_adapters_and_full.*\[True\]",
            r"test_pull_request_action.py::test_a_contract_is_checked\[True\]",
            r"engine/training/test_preference_parity.py::test_ranks_in_one.*\[Llama-ipo",
            r"cli/test_try.py::test_a_study_that_was_moved_goes_on\[(renamed|moved)\]",
            r"engine/training/test_preferences.py::test_ranks_in_one.*\[(?!sigmoid\])",
            r"study/test_damage.py::test_broken_weights.*\[(?!halved|another config)",
            r"study/test_damage.py::test_a_damaged_plan.*\[(?!half|one bit\]|a folder)",
            r"study/test_damage.py::test_a_broken_record_of_the_study.*\[(?!flipped)",
            r"engine/training/test_on_policy_parity.py.*(?<!\[Llama-dapo\])$",
            r"test_kernel_counts.py::test_a_layer_of_training",
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
