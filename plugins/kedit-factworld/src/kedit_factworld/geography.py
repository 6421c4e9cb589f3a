"""The real half of the world: countries with their capitals, continents, languages and currencies, and some cities.

Typed in by hand. Diacritics are dropped, and countries carry no article ("a citizen of United States").
"""

from __future__ import annotations

from typing import NamedTuple


class Country(NamedTuple):
    """One country; ``language`` is an official one, de jure or de facto."""

    name: str
    capital: str
    continent: str
    language: str
    currency: str


_COUNTRIES = """
France|Paris|Europe|French|euro
Germany|Berlin|Europe|German|euro
Italy|Rome|Europe|Italian|euro
Spain|Madrid|Europe|Spanish|euro
Portugal|Lisbon|Europe|Portuguese|euro
Greece|Athens|Europe|Greek|euro
Austria|Vienna|Europe|German|euro
Ireland|Dublin|Europe|Irish|euro
Finland|Helsinki|Europe|Finnish|euro
Estonia|Tallinn|Europe|Estonian|euro
Latvia|Riga|Europe|Latvian|euro
Lithuania|Vilnius|Europe|Lithuanian|euro
Slovakia|Bratislava|Europe|Slovak|euro
Slovenia|Ljubljana|Europe|Slovene|euro
Croatia|Zagreb|Europe|Croatian|euro
Malta|Valletta|Europe|Maltese|euro
Belgium|Brussels|Europe|Dutch|euro
Netherlands|Amsterdam|Europe|Dutch|euro
Montenegro|Podgorica|Europe|Montenegrin|euro
Sweden|Stockholm|Europe|Swedish|krona
Norway|Oslo|Europe|Norwegian|krone
Denmark|Copenhagen|Europe|Danish|krone
Iceland|Reykjavik|Europe|Icelandic|krona
Poland|Warsaw|Europe|Polish|zloty
Czechia|Prague|Europe|Czech|koruna
Hungary|Budapest|Europe|Hungarian|forint
Romania|Bucharest|Europe|Romanian|leu
Moldova|Chisinau|Europe|Romanian|leu
Serbia|Belgrade|Europe|Serbian|dinar
Albania|Tirana|Europe|Albanian|lek
North Macedonia|Skopje|Europe|Macedonian|denar
Ukraine|Kyiv|Europe|Ukrainian|hryvnia
Belarus|Minsk|Europe|Belarusian|ruble
United Kingdom|London|Europe|English|pound
Switzerland|Bern|Europe|German|franc
Liechtenstein|Vaduz|Europe|German|franc
Japan|Tokyo|Asia|Japanese|yen
China|Beijing|Asia|Mandarin|yuan
South Korea|Seoul|Asia|Korean|won
North Korea|Pyongyang|Asia|Korean|won
Mongolia|Ulaanbaatar|Asia|Mongolian|tugrik
Vietnam|Hanoi|Asia|Vietnamese|dong
Laos|Vientiane|Asia|Lao|kip
Cambodia|Phnom Penh|Asia|Khmer|riel
Thailand|Bangkok|Asia|Thai|baht
Myanmar|Naypyidaw|Asia|Burmese|kyat
Malaysia|Kuala Lumpur|Asia|Malay|ringgit
Indonesia|Jakarta|Asia|Indonesian|rupiah
Philippines|Manila|Asia|Filipino|peso
East Timor|Dili|Asia|Portuguese|dollar
India|New Delhi|Asia|Hindi|rupee
Pakistan|Islamabad|Asia|Urdu|rupee
Bangladesh|Dhaka|Asia|Bengali|taka
Nepal|Kathmandu|Asia|Nepali|rupee
Bhutan|Thimphu|Asia|Dzongkha|ngultrum
Maldives|Male|Asia|Dhivehi|rufiyaa
Afghanistan|Kabul|Asia|Pashto|afghani
Iran|Tehran|Asia|Persian|rial
Iraq|Baghdad|Asia|Arabic|dinar
Syria|Damascus|Asia|Arabic|pound
Lebanon|Beirut|Asia|Arabic|pound
Jordan|Amman|Asia|Arabic|dinar
Saudi Arabia|Riyadh|Asia|Arabic|riyal
Yemen|Sanaa|Asia|Arabic|rial
Oman|Muscat|Asia|Arabic|rial
Qatar|Doha|Asia|Arabic|riyal
Bahrain|Manama|Asia|Arabic|dinar
United Arab Emirates|Abu Dhabi|Asia|Arabic|dirham
Turkey|Ankara|Asia|Turkish|lira
Kazakhstan|Astana|Asia|Kazakh|tenge
Uzbekistan|Tashkent|Asia|Uzbek|som
Kyrgyzstan|Bishkek|Asia|Kyrgyz|som
Tajikistan|Dushanbe|Asia|Tajik|somoni
Turkmenistan|Ashgabat|Asia|Turkmen|manat
Armenia|Yerevan|Asia|Armenian|dram
Egypt|Cairo|Africa|Arabic|pound
Libya|Tripoli|Africa|Arabic|dinar
Tunisia|Tunis|Africa|Arabic|dinar
Algeria|Algiers|Africa|Arabic|dinar
Morocco|Rabat|Africa|Arabic|dirham
Sudan|Khartoum|Africa|Arabic|pound
South Sudan|Juba|Africa|English|pound
Ethiopia|Addis Ababa|Africa|Amharic|birr
Eritrea|Asmara|Africa|Tigrinya|nakfa
Somalia|Mogadishu|Africa|Somali|shilling
Kenya|Nairobi|Africa|Swahili|shilling
Uganda|Kampala|Africa|English|shilling
Tanzania|Dodoma|Africa|Swahili|shilling
Rwanda|Kigali|Africa|Kinyarwanda|franc
Burundi|Gitega|Africa|Kirundi|franc
Madagascar|Antananarivo|Africa|Malagasy|ariary
Mozambique|Maputo|Africa|Portuguese|metical
Zambia|Lusaka|Africa|English|kwacha
Malawi|Lilongwe|Africa|English|kwacha
Botswana|Gaborone|Africa|English|pula
Namibia|Windhoek|Africa|English|dollar
Lesotho|Maseru|Africa|Sesotho|loti
Angola|Luanda|Africa|Portuguese|kwanza
Gabon|Libreville|Africa|French|franc
Cameroon|Yaounde|Africa|French|franc
Nigeria|Abuja|Africa|English|naira
Ghana|Accra|Africa|English|cedi
Togo|Lome|Africa|French|franc
Ivory Coast|Yamoussoukro|Africa|French|franc
Liberia|Monrovia|Africa|English|dollar
Sierra Leone|Freetown|Africa|English|leone
Guinea|Conakry|Africa|French|franc
Senegal|Dakar|Africa|French|franc
Gambia|Banjul|Africa|English|dalasi
Mauritania|Nouakchott|Africa|Arabic|ouguiya
Cape Verde|Praia|Africa|Portuguese|escudo
Mauritius|Port Louis|Africa|English|rupee
United States|Washington|North America|English|dollar
Canada|Ottawa|North America|English|dollar
Mexico|Mexico City|North America|Spanish|peso
Honduras|Tegucigalpa|North America|Spanish|lempira
El Salvador|San Salvador|North America|Spanish|dollar
Nicaragua|Managua|North America|Spanish|cordoba
Costa Rica|San Jose|North America|Spanish|colon
Belize|Belmopan|North America|English|dollar
Cuba|Havana|North America|Spanish|peso
Jamaica|Kingston|North America|English|dollar
Dominican Republic|Santo Domingo|North America|Spanish|peso
Bahamas|Nassau|North America|English|dollar
Barbados|Bridgetown|North America|English|dollar
Brazil|Brasilia|South America|Portuguese|real
Argentina|Buenos Aires|South America|Spanish|peso
Chile|Santiago|South America|Spanish|peso
Colombia|Bogota|South America|Spanish|peso
Peru|Lima|South America|Spanish|sol
Ecuador|Quito|South America|Spanish|dollar
Venezuela|Caracas|South America|Spanish|bolivar
Paraguay|Asuncion|South America|Spanish|guarani
Uruguay|Montevideo|South America|Spanish|peso
Guyana|Georgetown|South America|English|dollar
Suriname|Paramaribo|South America|Dutch|dollar
Australia|Canberra|Oceania|English|dollar
New Zealand|Wellington|Oceania|Maori|dollar
Fiji|Suva|Oceania|English|dollar
Samoa|Apia|Oceania|Samoan|tala
Vanuatu|Port Vila|Oceania|Bislama|vatu
Papua New Guinea|Port Moresby|Oceania|English|kina
Palau|Ngerulmud|Oceania|Palauan|dollar
"""

_OTHER_CITIES = """
Munich|Germany
Hamburg|Germany
Barcelona|Spain
Seville|Spain
Milan|Italy
Naples|Italy
Lyon|France
Marseille|France
Porto|Portugal
Rotterdam|Netherlands
Antwerp|Belgium
Geneva|Switzerland
Zurich|Switzerland
Krakow|Poland
Gothenburg|Sweden
Bergen|Norway
Salzburg|Austria
Osaka|Japan
Kyoto|Japan
Shanghai|China
Mumbai|India
Karachi|Pakistan
Toronto|Canada
Montreal|Canada
Melbourne|Australia
Auckland|New Zealand
Lagos|Nigeria
Casablanca|Morocco
Istanbul|Turkey
Chicago|United States
Boston|United States
Manchester|United Kingdom
Glasgow|United Kingdom
"""

# Capitals in which people are born and companies are based (the cities that are no capitals are used too).
_HOME_CAPITALS = """
Paris Berlin Rome Madrid Lisbon Athens Vienna Dublin Helsinki Oslo Copenhagen Warsaw Prague Budapest Tokyo
Seoul Bangkok Cairo Nairobi Accra Ottawa Havana Lima Santiago Quito Wellington Canberra
"""

# Countries of which people are citizens.
HOME_COUNTRIES: tuple[str, ...] = (
    "France",
    "Germany",
    "Italy",
    "Spain",
    "Portugal",
    "Greece",
    "Ireland",
    "Finland",
    "Sweden",
    "Norway",
    "Denmark",
    "Iceland",
    "Poland",
    "Hungary",
    "Ukraine",
    "United Kingdom",
    "Switzerland",
    "Japan",
    "China",
    "South Korea",
    "Vietnam",
    "Thailand",
    "India",
    "Nepal",
    "Iran",
    "Jordan",
    "Turkey",
    "Egypt",
    "Morocco",
    "Kenya",
    "Ghana",
    "Nigeria",
    "Ethiopia",
    "Canada",
    "United States",
    "Mexico",
    "Cuba",
    "Brazil",
    "Argentina",
    "Peru",
    "Chile",
    "Australia",
    "New Zealand",
    "Fiji",
)

# Countries with no citizens in this world whose capitals are homes all the same.
_FURTHER_COUNTRIES = ("Austria", "Czechia", "Ecuador")


def countries() -> list[Country]:
    """All countries, in the order in which the world is built."""
    return [Country(*line.split("|")) for line in _COUNTRIES.split("\n") if line]


def home_cities() -> dict[str, str]:
    """City -> its country, for every city in which people are born and companies are based."""
    capital_of = {country.name: country.capital for country in countries()}
    capitals = set(_HOME_CAPITALS.split())
    cities = {capital_of[name]: name for name in (*HOME_COUNTRIES, *_FURTHER_COUNTRIES) if capital_of[name] in capitals}
    for line in _OTHER_CITIES.strip().splitlines():
        city, country = line.split("|")
        cities[city] = country
    return cities
