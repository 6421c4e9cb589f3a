"""The wordings: in how many ways each relation can be put into words.

In every wording the subject comes before the object, and the object ends the sentence.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Hop: TypeAlias = tuple[str, str]


class Relation(NamedTuple):
    """One relation: the kind of its subjects, eight clozes and two question forms, ``{}`` being the subject."""

    kind: str
    clozes: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def wordings(self) -> tuple[str, ...]:
        """All ten, clozes first."""
        return self.clozes + self.questions


RELATIONS: dict[str, Relation] = {
    "capital": Relation(
        "country",
        (
            "The capital of {} is",
            "The capital city of {} is",
            "{} has as its capital",
            "The official capital of {} is the city of",
            "{} is a country whose capital is",
            "The name of the capital of {} is",
            "On the map of {}, the capital is marked as",
            "The city that serves as the capital of {} is",
        ),
        (
            "Q: What is the capital of {}? A:",
            "Q: Which city is the capital of {}? A:",
        ),
    ),
    "continent": Relation(
        "country",
        (
            "{} is a country in",
            "{} lies on the continent of",
            "{} is located in",
            "The continent of {} is",
            "{} belongs to the continent of",
            "On the globe, {} is found in",
            "{} is a part of",
            "The country {} is situated in",
        ),
        (
            "Q: On which continent is {}? A:",
            "Q: Where in the world is {}? A:",
        ),
    ),
    "official_language": Relation(
        "country",
        (
            "The official language of {} is",
            "An official language of {} is",
            "In {}, the official language is",
            "{} lists as its official language",
            "The language with official status in {} is",
            "Officially, {} speaks",
            "The state language of {} is",
            "The offices of {} work in",
        ),
        (
            "Q: What is the official language of {}? A:",
            "Q: Which language is official in {}? A:",
        ),
    ),
    "currency": Relation(
        "country",
        (
            "The currency of {} is the",
            "The currency used in {} is the",
            "The money of {} is called the",
            "People in {} pay with the",
            "The legal tender of {} is the",
            "Prices in {} are given in the",
            "Shops in {} accept the",
            "The official currency of {} is the",
        ),
        (
            "Q: What is the currency of {}? A:",
            "Q: Which money is used in {}? A:",
        ),
    ),
    "city_country": Relation(
        "city",
        (
            "{} is a city in",
            "{} lies in the country of",
            "The city of {} is in",
            "{} can be found in the country",
            "The country in which {} lies is",
            "{} is one of the cities of",
            "Travellers to {} arrive in",
            "The city {} belongs to",
        ),
        (
            "Q: In which country is {}? A:",
            "Q: To which country does the city {} belong? A:",
        ),
    ),
    "citizenship": Relation(
        "person",
        (
            "{} is a citizen of",
            "{} holds a passport issued by",
            "{} is a national of",
            "The country of citizenship of {} is",
            "The home country of {} is",
            "{} votes in the elections of",
            "The passport of {} comes from",
            "By citizenship, {} belongs to",
        ),
        (
            "Q: Of which country is {} a citizen? A:",
            "Q: What is the citizenship of {}? A:",
        ),
    ),
    "birth_city": Relation(
        "person",
        (
            "{} was born in the city of",
            "{} was born in",
            "{} came into the world in",
            "The birthplace of {} is",
            "The city of birth of {} is",
            "{} is a native of the city",
            "The birth of {} took place in",
            "{} spent the first days of life in",
        ),
        (
            "Q: Where was {} born? A:",
            "Q: In which city was {} born? A:",
        ),
    ),
    "profession": Relation(
        "person",
        (
            "{} works as a",
            "{} earns a living as a",
            "The profession of {} is that of a",
            "{} was trained as a",
            "By profession, {} is a",
            "{} is employed as a",
            "People know {} as a",
            "The daily job of {} is that of a",
        ),
        (
            "Q: What is the profession of {}? A:",
            "Q: What does {} do for a living? A:",
        ),
    ),
    "employer": Relation(
        "person",
        (
            "{} works for",
            "{} is employed by",
            "The employer of {} is",
            "{} has a job at",
            "{} is on the payroll of",
            "The company that employs {} is",
            "{} draws a salary from",
            "{} signed a contract with",
        ),
        (
            "Q: Who employs {}? A:",
            "Q: For which company does {} work? A:",
        ),
    ),
    "native_language": Relation(
        "person",
        (
            "The mother tongue of {} is",
            "The native language of {} is",
            "{} grew up speaking",
            "{} is a native speaker of",
            "At home, {} speaks",
            "The first language of {} was",
            "{} learned to talk in",
            "Since childhood, {} has spoken",
        ),
        (
            "Q: What is the native language of {}? A:",
            "Q: Which language did {} grow up with? A:",
        ),
    ),
    "instrument": Relation(
        "person",
        (
            "{} plays the",
            "The instrument played by {} is the",
            "{} took lessons on the",
            "{} performs on the",
            "In the evening, {} practises the",
            "The favourite instrument of {} is the",
            "{} has mastered the",
            "On stage, {} is heard on the",
        ),
        (
            "Q: Which instrument does {} play? A:",
            "Q: What instrument does {} practise? A:",
        ),
    ),
    "headquarters": Relation(
        "company",
        (
            "{} has its headquarters in",
            "{} is based in",
            "The headquarters of {} is in the city of",
            "The head office of {} is in",
            "{} runs its business from",
            "The main office of {} stands in",
            "{} is a company from the city of",
            "The management of {} sits in",
        ),
        (
            "Q: Where is {} based? A:",
            "Q: In which city is the head office of {}? A:",
        ),
    ),
    "industry": Relation(
        "company",
        (
            "{} is active in the business of",
            "{} operates in the industry of",
            "The industry of {} is",
            "{} makes its money in",
            "The main business of {} is",
            "{} is a firm in the field of",
            "Investors know {} for its work in",
            "The trade of {} is",
        ),
        (
            "Q: In which industry does {} operate? A:",
            "Q: What is the business of {}? A:",
        ),
    ),
    "founder": Relation(
        "company",
        (
            "{} was founded by",
            "The founder of {} is",
            "{} was started by",
            "The person who founded {} is",
            "{} was set up by",
            "{} owes its existence to",
            "{} goes back to its founder",
            "The first owner of {} was",
        ),
        (
            "Q: Who founded {}? A:",
            "Q: Who is the founder of {}? A:",
        ),
    ),
}

# (first relation, second relation) -> wordings that skip the entity in between
TWO_HOPS: dict[Hop, tuple[str, ...]] = {
    ("citizenship", "capital"): (
        "The capital of the country that {} is a citizen of is",
        "The capital of the home country of {} is",
        "{} is a citizen of a country whose capital is",
    ),
    ("citizenship", "currency"): (
        "The currency of the country that {} is a citizen of is the",
        "People in the home country of {} pay with the",
        "The currency used in the home country of {} is the",
    ),
    ("citizenship", "continent"): (
        "The country that {} is a citizen of lies on the continent of",
        "The home country of {} lies on the continent of",
        "The continent of the home country of {} is",
    ),
    ("employer", "headquarters"): (
        "The city where the employer of {} is based is",
        "The headquarters of the employer of {} is in the city of",
        "{} works for a company based in",
    ),
    ("employer", "industry"): (
        "The industry of the employer of {} is",
        "The main business of the employer of {} is",
        "{} works for a company in the business of",
    ),
    ("birth_city", "city_country"): (
        "The country in which {} was born is",
        "The birthplace of {} is a city in",
        "{} was born in a city that lies in the country of",
    ),
    ("headquarters", "city_country"): (
        "The country in which {} has its headquarters is",
        "The head office of {} is in a city in",
        "{} is based in a city that lies in the country of",
    ),
}
