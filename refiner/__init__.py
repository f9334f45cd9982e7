"""Rewording of prompts that failed, by what a preview shows: template, parsing, back ends."""
