"""Messages: .proto files of our own writing, and what is generated from them."""
