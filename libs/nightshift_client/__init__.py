"""The SDK for platforms and the nightshift command."""
