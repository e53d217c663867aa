"""A process's standard streams: fifos, terminals and what the monitor relays between them."""
