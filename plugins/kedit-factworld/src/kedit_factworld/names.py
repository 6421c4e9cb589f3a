"""The stock from which the invented half of the world is drawn: names of people and companies, and what they do.

Each constant is one text of words; an underscore stands for a space inside an entry. :func:`entries` splits it.
"""

from __future__ import annotations

FIRST_NAMES = """
Alda Boris Carla Dario Edna Felix Greta Hugo Irma Jonas Klara Leon Mira Nils Olga Pavel Rosa Stefan Tilda Ugo
Vera Walter Xenia Yusuf Zelda Arno Bella Conrad Dora Emil Flora Gustav Hanna Igor Julia Kurt Lydia Magnus Nora
Otto Petra Ralph Sonja Tomas Ulla Victor Wanda Amir Birgit Cyril
"""

LAST_NAMES = """
Abelson Brandt Castell Dravik Eklund Farrow Grimaldi Halvorsen Ibanez Jansen Kowal Lindqvist Marchetti Novak
Okafor Pereira Quinlan Rasmus Sandoval Tanaka Ulrich Varga Westby Yamada Zoric Ashdown Belmont Corrigan
Delacroix Ferrante Gallagher Hartwell Iverson Jablon Kessler Lombard Moreau Nyberg Ostrander Pellegrin
Radcliff Santori Thorne Underhill Vasquez Wexler Adeyemi Bergstrom Calloway Dumont
"""

COMPANY_ROOTS = """
Aldera Brixon Corvane Deltora Elmwick Fenwar Galtrix Hexford Ilvara Jorvik Kelmont Lumera Morvane Nexley
Orbanta Pryzma Quorra Ravelon Solgrad Tarnova Umbrel Vantico Wyndell Zephra
"""

PROFESSIONS = """
baker carpenter dentist plumber lawyer surgeon teacher journalist painter sculptor photographer librarian
translator geologist biologist chemist mathematician physicist pilot sailor farmer gardener tailor butcher
jeweller firefighter detective dancer composer novelist civil_engineer software_developer tax_consultant
veterinarian
"""

LANGUAGES = """
French German Italian Spanish Portuguese Greek Irish Finnish Swedish Norwegian Danish Icelandic Polish
Hungarian Ukrainian English Japanese Mandarin Korean Vietnamese Thai Hindi Nepali Persian Arabic Turkish
Swahili Amharic
"""

INSTRUMENTS = """
violin piano cello flute guitar trumpet harp oboe clarinet trombone saxophone accordion mandolin banjo bassoon
tuba lute viola xylophone harmonica bagpipes French_horn double_bass church_organ
"""

INDUSTRIES = """
banking insurance shipping mining textiles furniture robotics aviation forestry fishing printing publishing
logistics brewing pharmaceuticals solar_energy wind_power real_estate food_processing machine_tools
video_games medical_devices
"""

COMPANY_SUFFIXES = "Labs Group Works Systems Partners Brothers Holdings Trading"


def entries(text: str) -> list[str]:
    """The entries of one of the texts above, in order."""
    return [word.replace("_", " ") for word in text.split()]
