"""Traces and metrics for an OpenTelemetry collector; off unless an endpoint is set.

What is sent: one span for each RPC served and for each stretch of a skill's run, with the method, how it
ended, the run, the skill and the kind of caller; and what the metrics page shows. Never what a request said,
never names of persons or machines. `rpc.export` sends it.
"""

from nightshift_kit.otlp.settings import TelemetrySettings, telemetry_settings
from nightshift_kit.otlp.spans import Roots, Span, SpanSink, working

__all__ = ["Roots", "Span", "SpanSink", "TelemetrySettings", "telemetry_settings", "working"]
