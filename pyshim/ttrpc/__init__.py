"""ttrpc: framing, messages, status codes and a blocking client."""
