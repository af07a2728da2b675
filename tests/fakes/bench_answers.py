"""A right answer to each question of the bench, as a model might write it; tool calls as (name, arguments)."""

ANSWERS = {
    "capital": "Canberra",
    "element": "It is **tungsten**.",
    "bones": "206",
    "moon": "1969.",
    "author": "Shelley",
    "planet": "mercury",
    "currency": "Yen",
    "product": "17 * 23 = 391",
    "difference": "614",
    "precedence": "12 + 7 = 19",
    "power": "1,024",
    "percent": "36.0",
    "train": "150 km",
    "pens": "7.50",
    "person": '```json\n{"name": "Ada Lovelace", "age": 36}\n```',
    "city": '{"city": "oslo", "country": "Norway"}',
    "colours": 'Here it is: {"colours": ["red", "white", "blue"]}',
    "order": '{"item": "Tea", "boxes": 4, "to": "Bern"}',
    "flags": '{"door_open": true, "light_on": false}',
    "date": '{"day": 5, "month": 3, "year": 2024}',
    "mood": '{"sentiment": "positive"}',
    "weather": ("get_weather", {"city": "Lisbon, Portugal"}),
    "timer": ("set_timer", {"minutes": 15}),
    "money": ("convert_currency", {"amount": 250.0, "source": "usd", "target": "EUR"}),
    "mail": ("send_email", {"recipient": "bob@example.org", "subject": "Lunch"}),
    "music": ("play_music", {"title": "Yesterday"}),
    "umbrella": ("get_weather", {"city": "Bergen"}),
    "no tool": "Cold.",
    "palindrome": "def is_palindrome(text: str) -> bool:\n    text = text.lower()\n    return text == text[::-1]",
    "vowels": "```python\ndef count_vowels(text):\n    return sum(1 for c in text.lower() if c in 'aeiou')\n```",
    "fizz": (
        "def fizz(n):\n    if n % 15 == 0:\n        return 'FizzBuzz'\n    if n % 3 == 0:\n        return 'Fizz'\n"
        "    return 'Buzz' if n % 5 == 0 else str(n)"
    ),
    "second": "def second_largest(numbers):\n    return sorted(set(numbers))[-2]",
    "flatten": "def flatten(lists):\n    return [x for inner in lists for x in inner]",
    "gcd": "Sure!\n```\ndef gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n```\nIt works.",
    "caesar": (
        "def shift(text, n):\n    out = ''\n    for c in text:\n        if 'a' <= c <= 'z':\n"
        "            c = chr((ord(c) - 97 + n) % 26 + 97)\n        out += c\n    return out"
    ),
    "start": "4417",
    "middle": "Pier 9",
    "end": "Marguerite",
    "update": "Friday",
    "detail": "46 kilograms",
    "sign": "heron",
    "owner": "Tomas",
}
