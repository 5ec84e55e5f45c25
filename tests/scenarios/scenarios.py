"""Where each scenario of PostgreSQL's behaviour is shown, or why it is not: the one table.

The numbers are those of section 4 of the reference (postgres.md).  An entry is a list of the
tests that show the scenario, or a line that says why there is none.
"""

from __future__ import annotations

from collections.abc import Callable


def _tests_of(path: str) -> Callable[[str], str]:
    """Return what names a test of one file, as pytest does."""
    return lambda name: f"tests/{path}::{name}"


_T01_TO_T24 = _tests_of("scenarios/test_T01_to_T24.py")
_T41_TO_T59 = _tests_of("scenarios/test_T41_to_T59.py")
_T60_TO_T86 = _tests_of("scenarios/test_T60_to_T86.py")
_CYCLE = _tests_of("scenarios/test_crash_cycle.py")
_EXITS = _tests_of("scenarios/test_exits.py")
_FAULTS = _tests_of("scenarios/test_faults.py")
_HANDLES = _tests_of("scenarios/test_handles.py")
_LAUNCHING = _tests_of("scenarios/test_launching.py")
_ORPHANS = _tests_of("scenarios/test_no_orphans.py")
_LIFECYCLE = _tests_of("supervisor/test_lifecycle.py")
_ATTACH = _tests_of("client/test_attach.py")
_GROUP = _tests_of("client/test_group.py")
_PLAN = _tests_of("policy/test_plan.py")
_BOARD = _tests_of("ipc/test_board.py")
_REQUESTS = _tests_of("ipc/test_requests.py")
_SPEC = _tests_of("test_spec.py")

_LATER = "later work: queues in shared memory"

SCENARIOS: dict[str, list[str] | str] = {
    # 4.1 worker_spi.
    "T01": [
        _T01_TO_T24(
            "test_T01_a_client_gets_the_pid_at_once_and_the_worker_initialises_itself_after"
        ),
        _ATTACH("test_a_client_registers_a_worker_and_sees_its_whole_life"),
    ],
    # Nothing is broadcast: whoever reloads calls wake() or signal(SIGHUP) of the handles.
    "T02": [
        _T01_TO_T24("test_T02_a_reload_wakes_workers_that_idle_and_they_go_back_to_idle"),
    ],
    # A worker has no wait label; its name, type, state and reason are seen.
    "T03": [
        _T01_TO_T24("test_T03_the_kind_of_an_idle_worker_and_its_state_are_seen_by_everybody"),
    ],
    "T04": [
        _T01_TO_T24(
            "test_T04_static_workers_all_run_again_after_a_restart_each_with_its_own_index"
        ),
    ],
    "T05": [
        _T01_TO_T24("test_T05_dynamic_workers_see_exactly_their_extra_and_leave_static_ones_alone"),
    ],
    "T06": [
        _T01_TO_T24("test_T06_T07_a_database_that_refuses_fails_the_launch_unless_it_is_bypassed"),
    ],
    "T07": [
        _T01_TO_T24("test_T06_T07_a_database_that_refuses_fails_the_launch_unless_it_is_bypassed"),
    ],
    "T08": [
        _T01_TO_T24("test_T08_an_option_that_does_not_exist_is_an_error_before_any_slot_is_used"),
        _ATTACH("test_a_spec_that_the_supervisor_finds_invalid_is_refused_and_uses_nothing_up"),
    ],
    "T09": [
        _ATTACH("test_a_full_supervisor_refuses_with_its_limit_and_uses_nothing_up"),
    ],
    "T10": [
        _T01_TO_T24("test_T10_a_client_that_waits_for_a_start_hears_of_the_supervisors_death"),
        _ATTACH("test_every_wait_sees_the_supervisors_death_within_a_second"),
    ],
    # 4.2 Workers bound to a resource: which ones make way, a predicate says (terminate_where).
    "T11": [
        _T01_TO_T24("test_T11_T13_T15_who_is_bound_to_a_resource_makes_way_and_nobody_else"),
    ],
    "T12": [
        _T01_TO_T24("test_T12_an_administrator_ends_a_worker_by_its_pid"),
    ],
    "T13": [
        _T01_TO_T24("test_T11_T13_T15_who_is_bound_to_a_resource_makes_way_and_nobody_else"),
    ],
    "T14": "impossible: there is no interruptible flag; terminate_where takes any predicate",
    "T15": [
        _T01_TO_T24("test_T11_T13_T15_who_is_bound_to_a_resource_makes_way_and_nobody_else"),
    ],
    # 4.3 test_shm_mq.
    "T16": _LATER,
    "T17": _LATER,
    "T18": _LATER,
    "T19": _LATER,
    "T20": _LATER,
    # The half of it that is about queues is later work.
    "T21": [_GROUP("test_t21_a_number_that_is_none_is_refused")],
    # Fewer than wanted is no error: the group is told so, and decides.
    "T22": [
        _GROUP("test_t22_fewer_slots_than_wanted_make_a_smaller_group_which_is_told_so"),
    ],
    "T23": [
        _GROUP("test_t23_the_first_that_ends_before_it_was_ready_raises_at_once"),
    ],
    "T24": [
        _T01_TO_T24("test_T24_a_worker_that_follows_its_registrant_ends_after_its_violent_death"),
    ],
    "T25": [_GROUP("test_t25_the_members_end_when_the_leader_drops_the_group")],
    # 4.4 Parallel workers.
    "T26": [_GROUP("test_t26_t27_with_a_quota_of_any_size_the_result_is_the_same")],
    "T27": [_GROUP("test_t26_t27_with_a_quota_of_any_size_the_result_is_the_same")],
    "T28": [_GROUP("test_t28_an_error_larger_than_a_frame_arrives_once_and_up_to_its_end")],
    "T29": [_GROUP("test_t29_the_members_are_gone_before_the_next_group_is_launched")],
    "T30": [_GROUP("test_t30_planned_and_launched_are_told_apart")],
    "T30b": "impossible: requests are messages, so that no leader holds a lock while it ends",
    # 4.5 The crash cycle.
    "T31": [
        _CYCLE("test_T31_a_killed_member_takes_the_others_with_it_and_all_return_at_once"),
    ],
    "T32": [
        _CYCLE("test_T32_never_restarted_members_are_forgotten_and_their_quota_is_free"),
        _CYCLE("test_T32_members_that_never_started_are_forgotten_if_they_are_never_restarted"),
        _GROUP("test_t32_the_quota_is_usable_in_full_after_groups_that_crashed"),
    ],
    # Slots, generations and handles stay; an incarnation counts the lives.
    "T33": [_CYCLE("test_T33_handles_from_before_the_cycle_stay_valid")],
    "T34": [
        _CYCLE("test_T34_a_member_that_crashes_in_the_cycle_begins_no_other_one"),
        _CYCLE("test_T34_members_that_crash_together_make_one_cycle"),
    ],
    "T35": [_CYCLE("test_T35_a_crash_during_a_stop_begins_no_cycle")],
    "T36": [_CYCLE("test_T36_a_member_that_ignores_sigquit_is_killed_and_returns")],
    "T37": [_CYCLE("test_T37_an_exit_without_a_farewell_is_a_crash_whatever_its_code")],
    "T38": [_CYCLE("test_T38_by_default_a_crash_concerns_its_worker_only")],
    "T39": [_CYCLE("test_T39_everything_works_again_and_again_after_a_cycle")],
    "T40": [_CYCLE("test_T40_without_restart_after_crash_a_crash_fails_the_supervisor")],
    # 4.6 Lifecycle and exit codes.
    "T41": [
        _T41_TO_T59("test_T41_a_failure_is_a_back_off_and_then_another_pid_of_the_same_generation"),
    ],
    "T42": [_T41_TO_T59("test_T42_a_clean_exit_is_final_and_frees_the_slot")],
    "T43": [
        _T41_TO_T59("test_T43_who_is_told_of_a_failed_worker_finds_its_slot_free"),
        _HANDLES("test_the_slot_is_free_before_the_waiters_are_told"),
    ],
    "T44": [_HANDLES("test_terminate_during_the_delay_is_final_at_once")],
    "T45": [
        _HANDLES("test_a_worker_that_ran_and_ended_at_once_has_started"),
        _EXITS("test_exits_mean_what_the_table_says"),
    ],
    "T46": [
        _HANDLES("test_a_worker_that_fails_at_once_for_ever_leaves_the_loop_responsive"),
    ],
    "T47": [
        _HANDLES("test_a_stale_handle_never_touches_the_next_tenant_of_its_slot"),
        _ATTACH("test_a_handle_whose_slot_went_on_has_its_own_exit_and_never_the_tenants"),
    ],
    # Killed for being late it has FAILED: it did not crash, and did not end as it was asked to.
    "T48": [_HANDLES("test_terminate_escalates_to_sigkill_after_stop_timeout")],
    "T49": [
        _T41_TO_T59("test_T49_terminate_before_there_are_handlers_ends_it_as_asked_and_for_good"),
        _HANDLES("test_terminate_at_any_moment_after_register_always_ends_it"),
    ],
    "T50": [
        _T41_TO_T59("test_T50_a_sigterm_by_somebody_else_is_a_failure_and_left_to_the_rule"),
        _HANDLES("test_signal_leaves_the_rest_to_the_restart_rule"),
    ],
    # It never started: the target is imported before a start is told.
    "T51": [
        _LAUNCHING("test_a_target_that_cannot_be_found_or_fed_never_starts_and_says_why"),
        _ATTACH("test_a_launch_that_fails_is_never_started_with_the_traceback"),
    ],
    "T52": [_LIFECYCLE("test_advance_opens_gates_and_stops_nobody")],
    "T53": [_HANDLES("test_five_hundred_starts_never_hold_the_loop_for_long")],
    "T54": [
        _T41_TO_T59("test_T54_T55_a_registrant_that_is_gone_takes_no_pending_worker_with_it"),
    ],
    "T55": [
        _T41_TO_T59("test_T54_T55_a_registrant_that_is_gone_takes_no_pending_worker_with_it"),
    ],
    # 4.7 Launches that fail.
    "T56": [
        _T41_TO_T59("test_T56_a_failed_fork_is_told_and_returns_slot_and_quota"),
        _FAULTS("test_a_failed_fork_ends_a_worker_that_is_never_restarted"),
    ],
    "T57": [
        _T41_TO_T59("test_T57_after_two_failed_forks_a_restartable_worker_starts_at_the_third_try"),
    ],
    "T58": [
        _FAULTS("test_a_failed_fork_of_a_restartable_worker_is_tried_again_and_holds_up_nobody"),
    ],
    # What ran out is the supervisor's own: the launch waits for room, and nobody is refused.
    "T59": [
        _T41_TO_T59("test_T59_a_pidfd_that_finds_no_room_loses_the_launch_and_leaves_no_zombie"),
        _FAULTS("test_launches_wait_while_there_are_no_descriptors"),
    ],
    # 4.8 Stops.
    "T60": [
        _T60_TO_T86(
            "test_T60_a_request_that_was_sent_and_not_yet_read_when_a_stop_begins_is_answered"
        ),
        _T60_TO_T86("test_T60_who_waits_for_a_start_that_a_stop_prevents_is_told"),
    ],
    "T61": [
        _LIFECYCLE("test_register_is_refused_once_it_stops"),
        _ATTACH("test_a_smart_stop_refuses_new_workers_and_leaves_the_others_to_their_clients"),
    ],
    # Decided otherwise: a SMART stop takes no new workers, from nobody.
    "T62": [
        _ATTACH("test_a_smart_stop_refuses_new_workers_and_leaves_the_others_to_their_clients"),
    ],
    "T63": [
        _T60_TO_T86("test_T63_a_fast_stop_in_the_first_phase_asks_a_worker_that_runs_already"),
    ],
    "T64": [
        _T60_TO_T86(
            "test_T64_a_stop_gets_stricter_and_never_weaker_and_of_many_the_strictest_holds"
        ),
        _T60_TO_T86("test_T64_a_weaker_request_changes_nothing_of_a_stop"),
    ],
    "T65": [
        _LIFECYCLE("test_smart_waits_for_the_running_and_starts_nobody_again"),
    ],
    "T66": [
        _T60_TO_T86("test_T66_the_helpers_of_a_worker_end_with_it_in_a_stop"),
        _EXITS("test_the_rest_of_a_group_goes_with_its_leader"),
    ],
    # 4.9 Races on the slots.
    "T67": [
        _T60_TO_T86("test_T67_terminate_and_exit_before_either_is_looked_at_free_the_slot_once"),
        _PLAN("test_a_terminate_together_with_the_exit_prevents_the_restart"),
    ],
    "T68": [
        _HANDLES("test_terminate_before_the_start_frees_the_slot_and_tells_the_waiter"),
        _ATTACH("test_a_cancelled_register_leaves_no_worker_behind"),
    ],
    "T69": [
        _T60_TO_T86("test_T69_of_two_clients_that_race_for_the_last_slot_exactly_one_wins"),
    ],
    "T70": "impossible: requests are messages, without a lock and never half-written"
    " (hostile peers: tests/scenarios/test_hostile_peers.py)",
    # There is no wake beside the request; what was sent before the death is done.
    "T71": [
        _T60_TO_T86("test_T71_what_a_client_asked_for_before_its_violent_death_is_done"),
    ],
    # Three thousand tenancies instead of a hundred thousand.
    "T72": [
        _T60_TO_T86("test_T72_stale_handles_never_see_the_next_tenants_of_their_slot"),
        _ATTACH("test_churn_through_one_slot_gives_each_its_own_exit"),
    ],
    "T73": [
        _T60_TO_T86("test_T73_fifty_requests_that_wait_when_the_supervisor_wakes_are_all_accepted"),
    ],
    "T74": [
        _T60_TO_T86("test_T74_nothing_happens_where_a_counter_of_postgres_wraps"),
    ],
    "T75": [
        _GROUP("test_t75_whoever_sees_the_slot_free_finds_the_quota_returned"),
    ],
    # No field is client-writable; what clients can send is taken apart with care.
    "T76": [
        _BOARD("test_nobody_can_change_a_board"),
        _REQUESTS("test_random_bytes_are_no_message_and_raise_nothing_else"),
    ],
    "T77": "impossible: the board is sealed, written by the supervisor only, and never read by it",
    "T78": [
        _T60_TO_T86(
            "test_T78_a_name_of_any_script_is_the_same_for_the_worker_its_title_and_its_clients"
        ),
        _SPEC("test_a_name_that_cannot_be_shown_listed_or_looked_up_is_refused"),
    ],
    "T79": [
        _T60_TO_T86("test_T79_a_clock_that_is_set_changes_no_restart_delay"),
    ],
    "T80": [
        _T60_TO_T86("test_T80_a_supervisor_that_stood_still_catches_up_and_does_everything_once"),
        _T60_TO_T86("test_T80_exits_come_before_requests_whichever_happened_first"),
    ],
    "T81": [_HANDLES("test_a_pid_that_was_used_again_is_never_signalled")],
    "T82": [
        _T60_TO_T86("test_T82_a_report_that_nobody_reads_any_more_does_not_break_the_second_line"),
        _ORPHANS("test_kill_9_of_the_supervisor_ends_a_hundred_workers_within_a_second"),
        _ORPHANS("test_a_fork_of_the_host_does_not_hide_its_death"),
        _LAUNCHING("test_a_plain_worker_has_its_three_streams_its_channel_and_its_lifeline"),
    ],
    "T83": [
        _T60_TO_T86("test_T83_a_worker_outlives_the_thread_that_asked_for_it"),
        _T60_TO_T86("test_T83_workers_outlive_the_thread_that_started_their_supervisor"),
    ],
    "T84": [
        _ATTACH("test_many_clients_wait_for_one_worker_and_all_are_woken"),
    ],
    "T85": [
        _HANDLES("test_cancelling_a_waiter_loses_nothing_and_disturbs_nobody"),
        _ATTACH("test_cancelled_waits_lose_nothing"),
    ],
    "T86": [
        _T60_TO_T86(
            "test_T86_a_slot_is_not_given_away_while_its_process_lives_whatever_the_board_says"
        ),
    ],
}
