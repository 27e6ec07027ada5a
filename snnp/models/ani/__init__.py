"""ANI: networks on fixed atomic environment vectors, their scripted twin and their importer."""
