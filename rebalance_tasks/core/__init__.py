"""The pure core: models, states, placement, gravity, planning. No clock, no I/O, no celery, no redis."""
