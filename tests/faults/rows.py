"""The list of faults a run or a sweep has to survive, and for each the tests that inject it.

A fault is what the environment, the user or the hardware does; the words are short for what is wanted. `REASONS` has
those that nothing injects, because the code leaves no place for them. `COMPLAINTS` does the same for what users of
other projects complain about in launching and resuming. `test_rows.py` checks that every test named here is there.
"""

FAULTS = {
    1: "SIGKILL in a step", 2: "the same in a later epoch, over micro-batches", 3: "the same in a rank",
    4: "SIGKILL during the writing of a checkpoint", 5: "a damaged newest checkpoint", 6: "a full disk",
    7: "a loss that is no number", 8: "a loss that leaps", 9: "SIGTERM", 10: "SIGINT", 11: "SIGUSR1",
    12: "Ctrl-C in a sweep", 13: "a cell that fails", 14: "ranks in a sweep", 15: "numbers of ranks in a sweep",
    16: "a rank that dies", 17: "a flag after overrides", 18: "stale rank variables", 19: "a damaged token cache",
    20: "two processes that prepare at once", 21: "SIGKILL while preparing", 22: "no hub", 23: "no W&B server",
    24: "no W&B key", 25: "an unknown key", 26: "an unknown key with +", 27: "an unknown choice", 28: "a wrong type",
    29: "an unknown experiment", 30: "keys that do not fit", 31: "no GPU, but asked for", 32: "a missing column",
    33: "empty data", 34: "a broken line of JSON", 35: "less text than a window", 36: "a token the model has not",
    37: "windows longer than the model's", 38: "any Unicode, and a line of 200,000 characters",
    39: "a checkpoint with code in it", 40: "a target with code in it", 41: "paths that leave the root",
    42: "long overrides", 43: "a slash in an override", 44: "resuming with another config",
    45: "resuming with another number of ranks", 46: "a folder that cannot be written", 47: "a W&B file that was cut",
    48: "two runs in one folder",
}  # fmt: skip
KILLS = "faults/test_kill.py::test_five_kills_and_the_result_is_that_of_the_unbroken_run"
CHECKED = "config/test_check.py::test_an_invalid_value_is_refused_and_named"
TWICE = "data/test_cache.py::test_two_processes_build_once_and_a_killed_one_leaves_no_half"
DEAD_RANK = "training/test_trainer_ddp.py::test_a_tree_of_two_ranks_killed_in_either_ends_bit_identical"
RANKS_IN_SWEEP = "training/test_trainer_ddp.py::test_a_sweep_of_two_rank_cells_one_failing_on_rank_1"
SIGNALLED = "faults/test_preempt.py::test_a_signal_saves_and_the_same_command_ends_bit_identical"
ENDED = "launch/test_sweep_processes.py::test_a_sweep_that_is_ended_ends_its_cells_with_a_status"
TESTS: dict[int, list[str]] = {
    1: [KILLS, "faults/test_kill30.py::test_thirty_random_kills_over_trees_end_bit_identical"],
    2: [KILLS, "faults/test_kill_tree.py::test_a_tree_killed_in_trunk_branch_and_between_ends_bit_identical"],
    3: [DEAD_RANK],
    4: [KILLS,
        "training/test_checkpoint.py::test_a_kill_during_the_write_leaves_the_one_before_and_a_stray_that_is_cleaned"],
    5: ["faults/test_kill.py::test_a_damaged_newest_checkpoint_falls_back_says_so_and_ends_the_same"],
    6: ["training/test_checkpoint.py::test_a_full_disk_raises_an_error_and_leaves_no_bad_file",
        "runs/test_run.py::test_a_full_disk_fails_the_run_and_keeps_the_checkpoint_before"],
    7: ["runs/test_run.py::test_a_loss_that_is_not_finite_stops_the_run_with_the_step"],
    8: ["training/callbacks/test_fault_tolerance.py::test_a_spike_is_printed_once_with_its_step"],
    9: [SIGNALLED, "training/test_trainer_ddp.py::test_two_ranks_that_are_asked_to_end_save_once_and_say_so",
        "faults/test_preempt.py::test_a_signal_where_no_step_is_trained_is_heeded_too"],
    10: ["launch/test_main.py::test_ctrl_c_is_130_and_the_run_has_the_status_interrupted"],
    11: [SIGNALLED],
    12: [ENDED],
    13: ["launch/test_sweep.py::test_other_cells_run_after_a_failure_and_a_second_start_runs_the_missing_cells"],
    14: [RANKS_IN_SWEEP, "launch/test_sweep.py::test_launcher_basic_refuses_several_devices"],
    15: ["launch/test_sweep.py::test_cells_that_differ_only_in_devices_are_the_same_run"],
    16: [RANKS_IN_SWEEP, DEAD_RANK],
    17: ["launch/test_main.py::test_flags_may_stand_anywhere"],
    18: ["launch/test_main.py::test_stale_rank_variables_are_refused"],
    19: ["data/test_cache.py::test_a_damaged_folder_is_built_again"],
    20: [TWICE],
    21: [TWICE],
    22: ["data/test_dataset.py::test_an_unreachable_hub_is_reported_within_seconds"],
    23: ["training/test_loggers.py::test_a_server_that_does_not_answer_costs_two_seconds_and_one_line"],
    24: ["training/test_loggers.py::test_auto_without_a_key_is_offline_at_once"],
    25: [CHECKED], 26: [CHECKED], 27: [CHECKED], 28: [CHECKED], 29: [CHECKED],
    30: ["config/test_cross_checks.py::test_the_error_names_every_key_that_contradicts_another"],
    31: ["launch/test_main.py::test_a_gpu_that_does_not_exist_is_refused_in_one_line"],
    32: ["data/test_text.py::test_data_that_cannot_be_trained_on_is_named"],
    33: ["data/test_dataset.py::test_empty_and_missing_places_are_named"],
    34: ["data/test_dataset.py::test_a_broken_line_of_json_is_named_with_its_number"],
    35: ["runs/test_run.py::test_text_of_three_tokens_is_refused_before_training"],
    38: ["data/test_tokenizers.py::test_bytes_are_exact",
         "data/test_text.py::test_one_line_of_200000_characters"],
    39: ["training/test_checkpoint.py::test_a_checkpoint_with_code_in_it_is_refused"],
    40: ["config/test_targets.py::test_a_target_of_another_package_is_refused_and_not_imported", CHECKED],
    41: ["records/test_folder.py::test_a_name_cannot_leave_the_root", CHECKED],
    42: ["records/test_folder.py::test_names_are_short_and_plain"],
    43: ["records/test_folder.py::test_names_are_short_and_plain"],
    44: ["launch/test_main.py::test_resume_path_accepts_a_longer_budget_and_refuses_another_seed"],
    45: ["training/test_trainer_ddp.py::test_a_run_goes_on_with_another_number_of_ranks"],
    46: ["launch/test_main.py::test_a_root_that_cannot_be_written_is_refused_in_one_line"],
    47: ["faults/test_kill.py::test_the_mirror_of_a_killed_run_is_read_to_its_last_row_and_has_no_end"],
    48: ["records/test_folder.py::test_a_second_process_is_refused_while_the_first_lives"],
}  # fmt: skip
REASONS = {
    36: "the vocabulary is the tokenizer's; `model.vocab_size` is refused (test_check.py), so none can be smaller",
    37: "`model.context` is the length of a window as well: no second key could be longer",
}
COMPLAINTS: dict[str, list[str]] = {
    "ranks start the sweep again, hang it or kill it": [RANKS_IN_SWEEP],
    "ranks write to different folders": [
        RANKS_IN_SWEEP,
        "launch/test_main.py::test_other_ranks_write_nothing_into_the_folder",
    ],
    "the runs of a sweep become one run in W&B": [RANKS_IN_SWEEP],
    "every rank makes a W&B run": [
        RANKS_IN_SWEEP,
        "training/test_trainer_ddp.py::test_two_ranks_give_the_numbers_of_one_process",
    ],
    "one crash ends the sweep, or all cells fail of one defect": [
        "launch/test_sweep.py::test_other_cells_run_after_a_failure_and_a_second_start_runs_the_missing_cells",
        "launch/test_sweep_processes.py::test_failed_cells_are_retried_until_stop_after",
    ],
    "memory and its peaks leak from cell to cell": [
        "launch/test_sweep_processes.py::test_forked_cells_write_their_own_logs_and_are_archived"
    ],
    "two cells take the same GPU": ["launch/test_local_pool.py::test_cells_that_run_at_once_have_different_gpus"],
    "a launcher chosen in a file comes too late": ["launch/test_sweep.py::test_a_config_file_can_choose_the_launcher"],
    "errors of composition name neither file nor cure": [CHECKED],
    "resuming starts a new W&B run": ["runs/test_run.py::test_a_resumed_run_keeps_its_wandb_id"],
    "a requeued SLURM job loses its folder": [
        "slurm/test_one_node.py::test_an_array_of_cells_two_of_them_preempted_ends_as_unbroken_runs_do"
    ],
    "resuming in an epoch repeats data": [KILLS],
    "accumulation weights batches of unequal length wrongly": [
        "runs/test_run.py::test_micro_batches_do_not_change_the_result"
    ],
    "another number of devices gives another loss": [
        "training/test_trainer_ddp.py::test_two_ranks_give_the_numbers_of_one_process"
    ],
}
