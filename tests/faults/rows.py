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
    49: "a run folder whose config runs code", 50: "the same through export, teacher, init, resume and report",
    51: "functions of kleiber as targets", 52: "a law file that names a Python file", 53: "a script in a label",
    54: "an environment interpolation in a config", 55: "names that leave the run", 56: "a lock that is a link",
    57: "YAML aliases and deep nesting", 58: "text that changed under a run", 59: "foreign weights that changed",
    60: "bit rot in a large cache", 61: "SIGKILL while rows are rewritten", 62: "SIGKILL after the last checkpoint",
    63: "SIGKILL between the first score and the first checkpoint", 64: "a checkpoint without hashes",
    65: "a meta.json without its keys", 66: "damaged rows", 67: "a damaged csv", 68: "an odd summary.json",
    69: "a step folder that is a file", 70: "odd paths in the cache", 71: "broken compressed data",
    72: "binary text, other encodings, a full cache disk", 73: "a disk that is full at a checkpoint",
    74: "a pickle in place of a checkpoint", 75: "nan as an argument", 76: "absurd sizes", 77: "small absurdities",
    78: "a quantity of 0", 79: "a hundred thousand rows", 80: "a line of 300 MB", 81: "impossible tables",
    82: "an incomplete law file", 83: "an odd Hugging Face folder", 84: "a tokenizer that the regex engine refuses",
    85: "nan among imported weights", 86: "Ctrl-C, once and twice", 87: "a run folder that vanishes",
    88: "a rank that stands still", 89: "SIGKILL while tokenizing", 90: "leftovers of dead processes",
    91: "a report of many sizes", 92: "a report that is written elsewhere", 93: "a mistyped path of data",
    94: "a budget for a chain of stages", 95: "the mode of exported files", 96: "a module that does nothing",
}  # fmt: skip
KILLS = "faults/test_kill.py::test_five_kills_and_the_result_is_that_of_the_unbroken_run"
CHECKED = "config/test_check.py::test_an_invalid_value_is_refused_and_named"
TWICE = "data/test_cache.py::test_two_processes_build_once_and_a_killed_one_leaves_no_half"
DEAD_RANK = "training/test_trainer_ddp.py::test_a_tree_of_two_ranks_killed_in_either_ends_bit_identical"
RANKS_IN_SWEEP = "training/test_trainer_ddp.py::test_a_sweep_of_two_rank_cells_one_failing_on_rank_1"
SIGNALLED = "faults/test_preempt.py::test_a_signal_saves_and_the_same_command_ends_bit_identical"
ENDED = "launch/test_sweep_processes.py::test_a_sweep_that_is_ended_ends_its_cells_with_a_status"
FOREIGN = "faults/test_foreign.py::test_a_foreign_config_that_names_code_is_refused_at_every_door"
TESTS: dict[int, list[str]] = {
    1: [KILLS, "faults/test_kill30.py::test_thirty_random_kills_over_trees_end_bit_identical"],
    2: [KILLS, "faults/test_kill_tree.py::test_a_tree_killed_in_trunk_branch_and_between_ends_bit_identical"],
    3: [DEAD_RANK],
    4: [KILLS,
        "training/test_checkpoint.py::test_a_kill_during_the_write_leaves_the_one_before_and_a_stray_that_is_cleaned"],
    5: ["faults/test_kill.py::test_a_damaged_newest_checkpoint_falls_back_says_so_and_ends_the_same",
        "runs/test_open.py::test_a_damaged_newest_checkpoint_is_named_once_and_the_one_before_is_opened",
        "runs/test_inputs.py::test_of_a_run_whose_newest_checkpoint_is_damaged_the_weights_that_are_loaded_count"],
    6: ["training/test_checkpoint.py::test_a_full_disk_raises_an_error_and_leaves_no_bad_file",
        "runs/test_run.py::test_a_full_disk_fails_the_run_and_keeps_the_checkpoint_before"],
    7: ["runs/test_run.py::test_a_loss_that_is_not_finite_stops_the_run_with_the_step"],
    8: ["training/callbacks/test_stability.py::test_a_spike_is_printed_once_with_its_step"],
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
    23: ["records/test_wandb_run.py::test_a_server_that_does_not_answer_costs_two_seconds_and_one_line",
         "records/test_wandb_run.py::test_a_run_that_the_server_does_not_start_is_recorded_offline"],
    24: ["records/test_wandb_run.py::test_auto_without_a_key_is_offline_at_once_and_silent"],
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
    49: [FOREIGN],
    50: [FOREIGN, "faults/test_foreign.py::test_a_foreign_study_that_names_code_is_refused_by_its_report"],
    51: [FOREIGN],
    52: ["studies/laws/test_laws_json_reading.py::test_a_file_of_code_is_run_only_if_the_command_names_it_too",
         "studies/laws/test_laws_json_reading.py::test_no_study_and_no_design_runs_a_file_of_code",
         "studies/test_report.py::test_a_recorded_study_runs_no_file_of_code"],
    53: ["charts/test_page.py::test_hostile_text_adds_no_element_and_no_attribute_to_a_page",
         "studies/test_law_report.py::test_hostile_groups_columns_and_file_names_add_no_element_to_the_page",
         "training/callbacks/test_after_training_classes.py::test_a_label_that_is_a_script_is_only_text_in_the_page"],
    54: ["faults/test_foreign.py::test_the_environment_is_not_revealed_to_a_foreign_config",
         "faults/test_foreign.py::test_the_environment_is_not_revealed_to_a_report",
         "faults/test_foreign.py::test_rows_of_a_stranger_reveal_nothing_either"],
    55: ["faults/test_records.py::test_the_name_of_a_stage_cannot_lead_out_of_the_run",
         "config/test_check.py::test_an_invalid_value_is_refused_and_named",
         "config/test_stages.py::test_a_name_that_could_lead_out_of_the_run_is_refused"],
    56: ["faults/test_records.py::test_a_lock_that_is_a_link_is_refused_and_its_target_stays",
         "records/test_locks.py::test_what_is_not_a_lock_is_refused_and_stays_as_it_is",
         "records/test_locks.py::test_a_link_in_the_place_of_a_cache_lock_is_refused"],
    57: ["faults/test_foreign.py::test_a_config_that_is_a_bomb_is_refused_at_every_door",
         "records/test_files.py::test_damaged_yaml_is_refused_and_named_within_a_second",
         "records/test_files.py::test_damaged_json_is_refused_and_named"],
    58: ["runs/test_inputs.py::test_data_that_changed_is_refused_with_both_hashes_and_restored_data_goes_on",
         "runs/test_inputs.py::test_the_data_of_a_start_point_that_replay_reads_again_is_an_input",
         "runs/test_inputs.py::test_text_of_another_stage_and_a_trained_tokenizer_are_inputs_of_a_chain",
         "launch/test_main_finished.py::test_the_command_of_a_finished_run_names_changed_data_and_compares_untouched_data_never"],
    59: ["runs/test_inputs.py::test_a_foreign_folder_that_was_replaced_is_refused",
         "runs/test_inputs.py::test_a_start_point_that_was_trained_again_is_refused"],
    60: ["data/test_cache.py::test_every_byte_of_a_large_file_is_checked"],
    61: ["training/test_loggers.py::test_a_kill_while_the_file_is_rewritten_loses_no_row"],
    62: ["faults/test_kill.py::test_a_kill_after_the_last_checkpoint_leaves_no_finished_run_without_its_files",
         "faults/test_kill_tree.py::test_a_kill_before_the_score_matrix_is_written_leaves_none_that_lacks_a_stage"],
    63: ["training/test_loggers.py::test_a_stage_that_begins_anew_has_one_row_a_step"],
    64: ["faults/test_records.py::test_a_checkpoint_without_hashes_is_passed_over_though_its_weights_were_flipped",
         "runs/test_open.py::test_a_damaged_newest_checkpoint_is_named_once_and_the_one_before_is_opened"],
    65: ["training/test_checkpoint.py::test_an_odd_meta_json_is_named_and_its_checkpoint_passed_over"],
    66: ["training/test_loggers.py::test_intact_rows_are_kept_and_damaged_lines_reported_in_one_line"],
    67: ["training/test_loggers.py::test_metrics_csv_gets_the_header_that_it_lost"],
    68: ["faults/test_records.py::test_a_run_whose_summary_is_damaged_goes_on_and_names_it",
         "records/test_summary_file.py::test_a_damaged_summary_is_named_with_its_fault_and_begun_anew",
         "records/test_catalog.py::test_a_run_with_a_damaged_summary_is_named_and_the_others_are_shown"],
    69: ["training/test_checkpoint.py::test_a_file_or_link_with_the_name_of_a_checkpoint_is_set_aside"],
    70: ["data/test_cache.py::test_a_damaged_folder_is_built_again",
         "data/test_cache.py::test_a_lock_that_is_no_file_is_named_and_left_alone"],
    71: ["data/test_read_errors.py::test_a_damaged_file_is_named_with_its_defect",
         "data/test_read_errors.py::test_a_codec_that_is_not_installed_is_named"],
    72: ["data/test_read_errors.py::test_a_damaged_file_is_named_with_its_defect",
         "data/test_read_errors.py::test_a_full_disk_under_the_cache_is_named",
         "data/test_cache.py::test_a_full_disk_is_named_with_the_cache_and_leaves_nothing"],
    73: ["training/test_checkpoint.py::test_a_library_that_finds_the_disk_full_without_saying_so_is_reported_as_that"],
    74: ["training/test_checkpoint.py::test_a_checkpoint_with_code_in_it_is_refused"],
    75: ["config/test_check_ranges.py::test_a_number_that_is_not_finite_is_refused_by_its_key",
         "config/test_check_ranges.py::test_the_command_ends_with_2_and_names_the_key"],
    76: ["config/test_check_ranges.py::test_the_command_ends_with_2_and_names_the_key",
         "config/test_model_size.py::test_a_run_that_this_machine_cannot_hold_is_refused_with_the_memory_and_the_keys"],
    77: ["config/test_check_ranges.py::test_the_command_ends_with_2_and_names_the_key",
         "config/test_check_ranges.py::test_a_value_just_outside_of_a_range_is_refused_by_key_and_bound",
         "launch/test_main.py::test_a_run_that_is_refused_before_its_first_step_leaves_no_folder"],
    78: ["config/test_check_ranges.py::test_the_command_ends_with_2_and_names_the_key"],
    79: ["studies/laws/test_problem_pooling.py::test_200_000_rows_of_30_cells_are_fitted_as_the_30_means",
         "studies/laws/test_problem_pooling.py::test_few_rows_are_left_as_they_are_and_too_many_cells_are_refused_with_numbers"],
    80: ["data/test_text.py::test_a_long_line_is_read_in_pieces",
         "data/test_text.py::test_a_long_file_in_a_folder_is_read_in_pieces"],
    81: ["studies/laws/test_table.py::test_a_size_that_is_not_positive_is_refused_with_its_row_unless_it_is_excluded",
         "studies/laws/test_table.py::test_columns_of_the_same_name_are_refused_by_name",
         "studies/laws/test_filters.py::test_a_filter_that_is_nested_too_deeply_is_refused_by_its_text"],
    82: ["studies/laws/test_laws_json_reading.py::test_a_file_that_is_no_law_is_refused_by_its_name_and_the_reason",
         "studies/laws/test_laws_json_reading.py::test_a_missing_key_is_named"],
    83: ["models/test_hf_config.py::test_an_odd_config_json_is_named",
         "models/test_hf_config.py::test_an_impossible_number_in_config_json_is_named_at_once",
         "launch/test_main.py::test_a_hugging_face_folder_without_a_tokenizer_is_refused_in_one_line",
         "models/test_hf_pretrained.py::test_a_weight_that_is_not_finite_is_named_and_only_read_if_allowed"],
    84: ["data/test_pretrained_tokenizer_damaged.py::test_a_pattern_at_the_limit_of_the_engine_is_refused"],
    85: ["runs/test_huggingface.py::test_weights_that_are_not_finite_are_imported_only_if_asked"],
    86: ["faults/test_preempt.py::test_a_signal_saves_and_the_same_command_ends_bit_identical",
         "faults/test_preempt.py::test_a_second_ctrl_c_ends_the_run_at_once_with_130",
         "faults/test_preempt.py::test_a_signal_whose_exception_a_library_swallows_ends_the_run_after_its_first_step",
         "launch/test_sweep_processes.py::test_a_sweep_that_is_ended_ends_its_cells_with_a_status",
         "training/test_trainer_ddp.py::test_two_ranks_that_are_asked_to_end_save_once_and_say_so"],
    87: ["faults/test_preempt.py::test_a_run_whose_folder_is_deleted_says_so_and_ends_with_1"],
    88: ["training/test_trainer_ddp.py::test_a_rank_that_is_stopped_is_named_and_the_run_ends_with_a_checkpoint",
         "launch/test_ranks.py::test_ranks_that_did_not_answer_are_named"],
    89: ["data/test_token_writer.py::test_sigkill_while_tokenizing_loses_one_batch",
         "data/test_token_writer.py::test_an_interrupted_file_is_continued_and_equal"],
    90: ["records/test_locks_scratch.py::test_the_folder_of_a_killed_process_is_removed_and_that_of_a_live_one_stays",
         "records/test_locks_scratch.py::test_locking_a_run_and_writing_a_file_remove_the_parts_in_their_places",
         "launch/test_main.py::test_any_command_removes_the_scratch_folders_of_killed_launchers"],
    91: ["studies/laws/test_figures.py::test_200_sizes_are_drawn",
         "studies/test_report.py::test_a_study_of_200_sizes_is_drawn"],
    92: ["studies/test_study_archived.py::test_out_is_the_only_file_that_is_written"],
    93: ["launch/test_main.py::test_a_run_that_is_refused_before_its_first_step_leaves_no_folder"],
    94: ["runs/test_stage.py::test_a_budget_of_the_run_is_the_total_of_a_chain_in_its_own_proportion",
         "config/test_stages.py::test_the_budget_of_the_run_is_the_total_of_stages_with_budgets"],
    95: ["runs/test_huggingface.py::test_an_exported_run_gives_its_ids_and_logits_in_transformers",
         "training/test_checkpoint.py::test_the_files_of_a_checkpoint_have_the_mode_of_the_umask"],
    96: ["launch/test_main.py::test_a_module_of_the_launcher_that_is_started_runs_its_command_or_refuses"],
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


def page() -> str:
    """The page of the docs that lists the faults, each with its tests or the reason why nothing injects it."""
    lines = ["# Faults that runs, sweeps and fits survive", "",
             "What the environment, the user, the hardware or a stranger can do, and the test that does it. The table",
             "is written by `python tests/faults/rows.py > docs/faults.md`; a test compares the two.", "",
             "| # | fault | tests in `tests/`, or why there is none |", "| --- | --- | --- |"]  # fmt: skip
    for number, fault in FAULTS.items():
        tests = "<br>".join(f"`{name}`" for name in TESTS.get(number, ())) or REASONS[number]
        lines.append(f"| {number} | {fault} | {tests} |")
    lines += ["", "## What users of other projects complain about", "", "| complaint | tests |", "| --- | --- |"]
    lines += [f"| {what} | {'<br>'.join(f'`{name}`' for name in tests)} |" for what, tests in COMPLAINTS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
