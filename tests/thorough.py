"""Tests that ``make test`` leaves to ``make test-all``: they take long, and seldom fail alone.

Each line is the beginning of a test's id. ``make test`` has a study of each kind, and every parser,
form, finding and verb; here are more moments, sizes, devices and pages of the same.
"""

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
    "tests/cli/test_ray.py",
    "tests/cli/test_ray_places.py",
    "tests/cli/test_users_files.py",
    "tests/records/test_forged_names.py",
    "tests/test_no_network.py",
    # memory, and devices that are not here
    "tests/engine/training/test_memory.py::test_prediction_is_within_a_quarter_of_what_is_measured",
    "tests/engine/models/test_placed.py",
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
    "tests/integrations/test_retention_callback.py",
    "tests/integrations/test_hub.py",
    "tests/cli/test_lm_eval_model.py",
    # benchmarks
    "tests/test_study_benchmark.py",
    "tests/test_parity.py",
    "tests/test_zoo.py",
    "tests/test_repair_benchmark.py",
    "tests/test_prediction_benchmark.py",
    "tests/test_collection_benchmarks.py",
    "tests/study/test_search_benchmark.py",
    "tests/findings/test_decision_benchmark.py",
    # studies that go on
    "tests/study/test_extension.py::test_what_a_verdict_advises_can_be_done",
    "tests/study/test_extension.py::test_more_items_are_scored_and_none_again",
)
