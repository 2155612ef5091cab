"""Everything of the kit that speaks gRPC: servers, channels, identities, credentials, stopping."""
