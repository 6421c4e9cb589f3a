"""The parts of the site that are made from the code: settings, presets, results, commands, pages from elsewhere."""
