"""Profiles of projects: what their runs cost and how they fared, and which settings that speaks for."""
