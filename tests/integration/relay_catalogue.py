"""What users have reported of docker-proxy, and the tests that show what ours does instead.

A name alone is a check (``relay_checks`` and its neighbours), which docker-proxy must fail where it
has the fault; ``module::test`` is a test of a part that docker-proxy has not.
"""

from __future__ import annotations

# The references of several entries are different reports of one fault.
ENTRIES: dict[str, tuple[str, ...]] = {
    "moby#11185": ("check_memory_of_a_port", "test_portproxy_networks::test_ten_thousand_ports"),
    "moby#16284": ("check_memory_of_a_port", "test_portproxy_networks::test_ten_thousand_ports"),
    "moby#34328": ("check_memory_of_a_port", "check_memory_of_udp_clients"),
    "moby#23166": ("check_memory_of_a_port",),
    "moby#22614": ("check_tasks_of_a_port",),
    "moby#14288": ("check_system_calls_of_a_start",),
    "felinics/Memoh#946": ("check_tasks_of_a_port", "check_memory_of_a_port"),
    "moby#15086": (
        "check_the_container_can_learn_the_client",
        "test_relay_proxy_protocol::test_the_container_can_see_the_client",
    ),
    "moby#17666": ("test_relay_proxy_protocol::test_the_header_comes_first",),
    "moby#8795": ("test_portproxy_networks::test_datagrams_follow_a_mapping_at_once",),
    "moby#44688": ("test_portproxy_networks::test_datagrams_follow_a_mapping_at_once",),
    "moby#53384": ("test_portproxy_networks::test_datagrams_follow_a_mapping_at_once",),
    "moby#11998": (
        "check_answer_comes_from_the_address_that_was_asked",
        "check_one_client_may_ask_two_addresses",
    ),
    "moby#47879": ("check_udp_timeout_can_be_chosen",),
    "moby#49649": ("check_one_way_stream_keeps_its_source",),
    "moby#52483": ("check_datagram_after_a_stale_icmp_error",),
    "moby#6402": ("check_too_many_open_files",),
    "moby#45152": ("check_raises_the_soft_limit", "check_descriptors_of_a_connection"),
    "moby#47537": ("check_thousands_of_connections_one_after_another",),
    "docker/for-linux#335": ("check_half_closed_connections_can_be_ended",),
    "moby/libnetwork#1204": ("check_half_close_is_kept",),
    "moby#53357": ("check_a_container_that_listens_a_little_later",),
    "moby#48970": ("check_refusal_can_be_a_reset",),
    "moby#7856": ("check_dies_with_its_parent",),
    "docker/for-linux#1278": (
        "check_port_is_free_at_once_after_the_end",
        "test_portproxy::test_tool_names_who_has_a_busy_port",
    ),
    "moby#48567": (
        "check_port_is_free_at_once_after_the_end",
        "test_docker_ports::test_restart_although_connections_are_in_time_wait",
    ),
    "moby#47951": ("test_relay_catalogue::test_nobody_is_let_in_before_the_rules_are_there",),
    "moby#27880": ("check_serves_on_without_its_starter",),
    "moby#44215": ("test_portproxy_control::test_a_killed_control_plane_loses_no_connection",),
    "moby#43598": ("test_portproxy::test_tool_ends_when_its_relay_does",),
    "moby/libnetwork#2421": ("check_sigint_ends_it_whatever_is_open",),
    "moby#39933": ("check_runs_without_a_status_pipe",),
    "docker/cli#6023": ("check_takes_a_listener_from_a_newer_engine",),
    "moby#44577": ("check_ipv4_and_ipv6_may_have_one_port",),
    "docker/for-linux#566": ("test_docker_ports::test_ipv6_leads_to_a_container_without_it",),
    "moby#42762": ("check_sctp_keeps_nobody_waiting",),
    "moby#41872": ("test_relay_neighbours::test_no_interface_lets_in_what_is_for_127_0_0_1",),
    "moby#14856": (
        "test_portproxy_networks::test_who_forwards",
        "test_portproxy_networks::test_auto_leaves_to_the_data_plane_what_the_kernel_cannot",
    ),
    "moby#13379": ("check_system_calls_of_a_request",),
    "containers/gvisor-tap-vsock#621": ("check_one_question_holds_no_socket_for_long",),
}
