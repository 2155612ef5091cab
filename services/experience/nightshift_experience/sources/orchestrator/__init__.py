"""Runs of an orchestrator that works in rounds: run_logs/{run id}/run_summary.json."""
