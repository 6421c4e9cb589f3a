"""FactWorld for kedit: a seeded world of facts, tiny models that know it, edit cases, corpus, statistics, the demo."""
