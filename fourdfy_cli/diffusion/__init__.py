"""Pretrained diffusion models: noise schedules, loading, multi-view attention, low-rank adaptation, text."""
