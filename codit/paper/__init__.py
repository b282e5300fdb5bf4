"""Scales, studies, tables and figures of the notebooks."""
