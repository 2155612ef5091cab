"""Imports: a child process reads, the service writes."""
