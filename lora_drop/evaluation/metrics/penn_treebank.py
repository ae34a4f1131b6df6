"""Penn Treebank tokens as in the COCO caption evaluation: lower-cased, without punctuation.

That evaluation, and with it the E2E challenge's ROUGE-L, runs a Java program (PTBTokenizer of Stanford CoreNLP 3.4.1).
This module is an independent description of the program's behaviour on a line of text, written from its output. The
most important rules: hyphenated words are one token (`family-friendly`, `20-25`); contractions are two (`it 's`,
`do n't`); words joined by a missing space after a full stop are one (`centre.the`); `£` becomes `#`; brackets become
`-lrb-` and `-rrb-`.

Of 210,915 different lines of real text (E2E 54,036, DART, DialogSum, GLUE), 35 are split differently from the program,
one of them from E2E; most of these because the program looks into the next line for the end of a sentence.
"""

from __future__ import annotations

import re

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that are dropped. (The original also means to drop brackets, but looks for `-LRB-` in lower-cased text.)"""

_ABBREVIATION = (
    r"jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|ala|ariz|calif|colo|conn|ct|dak|del|fla|ga"
    r"|ind|kan|kans|ky|la|md|mich|minn|mo|mont|neb|nev|okla|pa|penn|tenn|tex|va|vt|wis|wisc|wyo|mr|mrs|ms|dr|drs|prof|profs|sen|sens"
    r"|rep|reps|atty|attys|lt|col|gen|messrs|gov|govs|adm|rev|maj|sgt|cpl|pvt|mt|capt|st|ste|ave|pres|lieut|hon|brig|cmdr|comdr|pfc"
    r"|spc|supt|supts|det|mme|mlle|asst|assoc|jr|sr|bros|blvd|rd|esq|sq|est|rt|pte|bldg|inc|co|cos|corp|pty|ptys|ppty|ltd|plc|bancorp"
    r"|bhd|assn|univ|intl|sys|dept|ph\.d|ed\.d|ph|ft|tel|ext|etc|al|seq|adj|adv|invt|elec|natl|mfg|mtg|vs|alex|wm|jos|cie|cf|treas"
    r"|(?-i:A)rk|(?-i:I)ll|(?-i:M)ass|(?-i:M)iss|(?-i:O)re|(?-i:W)ash|[a-z]"
)
"""Abbreviations that keep their full stop: single letters and these words, some only if capitalised."""
_OPENER = (
    r"About|According|Additionally|After|An|A|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr\.|Ms\.|Now|Once|One"
    r"|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
"""Words that open a sentence: a full stop between a single letter and one of these ends the sentence."""

# Parts of the rules. A letter may be a combining mark; superscripts and fractions do not count as digits.
_LETTER = (
    r"(?:[^\W\d_\xb2\xb3\xb9\xbc-\xbe\u2070-\u209c\u2150-\u218b]"
    r"|[\xad\u0300-\u036f\u0591-\u05bd\u064b-\u065e\u0900-\u0963\u0981-\u0d4e\u0e31-\u0e4e])"
)
_LETTER_OR_DIGIT = rf"(?:{_LETTER}|\d)"
_APOSTROPHE = r"['\x92\u2019]"
_QUOTE = r"['\x91\x92\u2018\u2019\u201b]"
_ENDING = rf"{_APOSTROPHE}(?:[msd]|re|ve|ll)"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_SYLLABLE = rf"(?:[dol]{_QUOTE}(?={_LETTER_OR_DIGIT}))?{_LETTER_OR_DIGIT}+"
_HYPHENATED = rf"{_SYLLABLE}(?:[-_\u058a\u2010\u2011]{_SYLLABLE})*"
_COMPOUND = rf"[a-z0-9][a-z0-9.,\xad]*(?:-(?:{_ACRONYM}\.|[a-z0-9\xad]+))+"
_CHOICE = r"[a-z0-9]+(?:-[a-z]+){0,2}"
_NAME = r"[a-z][a-z0-9_:.-]*"
_PATH = r"""[^\s"<>|()]+[^\s"<>|.!?(){},-]"""

_RULES = [
    # markup, web addresses, e-mail, mentions
    rf"<(?:[!?][a-z-][^>\r\n]*|/?{_NAME}(?: +{_NAME}(?: *= *(?:\"[^\"\r\n]*\"|'[^'\r\n]*'))?)* */?)>",
    rf"https?://{_PATH}|www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-z]{{2,4}}(?:/{_PATH})?",
    rf"(?:(?-i:[^\s\"`'<>|.!?(){{}},-_$])+\.)+(?:com|net|org|edu)(?:/{_PATH})?",
    r"[a-z0-9][^\s\"<>|()@]*@(?:[^\s\"<>|().@]+\.)*[^\s\"<>|().@]+",
    rf"@[a-z_][a-z_0-9]*|#{_LETTER}+",
    # one word as two tokens: group 1 is the first token, and the rest is read again
    rf"(can)not|(gon)na|(got)ta|(gim)me|(lem)me|(wan)na|({_APOSTROPHE}t)(?:is|was)|(d{_APOSTROPHE})ye|(more){_APOSTROPHE}n",
    rf"({_LETTER}+){_ENDING}",
    rf"([a-z\xad]*[a-mo-z]\xad*)n{_QUOTE}t",
    rf"n{_QUOTE}t|({_ENDING})[^a-z]",
    # words with an apostrophe
    rf"(?-i:[A-HJ-XZn]){_QUOTE}{_LETTER}{{2,}}|{_LETTER}+[aeiouy]{_QUOTE}(?-i:[aeiouA-Z]){_LETTER}*",
    rf"{_APOSTROPHE}(?:[2-9]0s|till?|em|cause|n{_APOSTROPHE}?)|({_APOSTROPHE}\d\d)\s",
    rf"(?:dunkin|somethin|ol|[ldj]){_APOSTROPHE}|(y{_APOSTROPHE}){_LETTER}",
    rf"(?:c{_APOSTROPHE}mon|nor{_APOSTROPHE}easter|s{_APOSTROPHE}mores|ev{_APOSTROPHE}ry|li{_APOSTROPHE}l|nat{_APOSTROPHE}l)",
    rf"cap{_APOSTROPHE}n|c{_APOSTROPHE}est|(')[a-z]\S",
    _ENDING,
    # numbers, dates, fractions, telephone numbers
    r"[-+]?(?:\d*(?:[.:,\xad\u066b\u066c]\d+)+|\d+)",
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|(?:\d{1,4}[- \xa0])?\d{1,4}[/\u2044]\d{1,4}",
    r"(?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}",
    r"(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}",
    # words with hyphens, slashes and full stops inside
    rf"({_HYPHENATED}\.)[,;:\u3001]|{_HYPHENATED}",
    rf"({_COMPOUND}\.)[,;:\u3001]|{_COMPOUND}",
    rf"{_CHOICE}(?:/{_CHOICE}){{1,2}}",
    rf"{_LETTER}{_LETTER_OR_DIGIT}*(?:[.?!]{_LETTER}{_LETTER_OR_DIGIT}*)+",
    r"(?-i:[A-Z]*)\$|c\+\+|[cf]#|(?-i:[A-Z]+(?:[+&][A-Z]+)+)|pro-|anti-|-[lr][rcs]b-",
    # abbreviations
    rf"(?:{_ABBREVIATION})\.",
    rf"([a-z])\.\s+(?-i:{_OPENER})\s",
    rf"{_ACRONYM}\.?",
    r"((?:nos?|prop|op|pp|figs?|art)\.)[ \t\xa0]*\d",
    # symbols
    r"([<>]?[:;=][-o*']?[()dpo\\{@|[\]])[^a-z0-9]",
    r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|-+|[?!]+|@+|#+|_+|\*+|<<|>>|''|``|\S",
]
_PATTERNS = [re.compile(rule, re.IGNORECASE) for rule in _RULES]
"""The longest match wins; among equally long ones, the earlier rule. If a group matched, it alone is the token, but the
whole match counts as the length."""

_PLAIN_WORD = re.compile(r"(?!(?:cannot|gonna|gotta|gimme|lemme|wanna)\s)([a-z]+)\s", re.IGNORECASE)
"""A shortcut for speed: plain words, most of any text, which only one rule can match."""
_SPACE = re.compile(r"\s+")
_NOT_TEXT = re.compile(
    "[^\x00-\uffff]|[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u20a6-\u20ab\u20ad-\u20cf\ue000-\uf8ff\ufe00-\ufe0f\ufeff]|&nbsp;"
)
"""Emoji, control characters and the like, which the program drops."""
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}
_SPELLINGS = dict(
    zip("[]{}£¢€¤½¼¾", ["-lsb-", "-rsb-", "-lcb-", "-rcb-", "#", "cents", "$", "$", "1/2", "1/4", "3/4"], strict=True)
)
_SPELLINGS |= dict.fromkeys('"`«»‘’‛‹›“”\x91\x92\x93\x94', "'") | dict.fromkeys("–—―\x96\x97…\x85", "--")


def penn_tokens(text: str) -> list[str]:
    """Return the tokens of one line of text, in order. A line that is empty or only punctuation has none.

    A token may contain a no-break space (in a telephone number), but never a space.
    """
    text = _NOT_TEXT.sub(" ", text) + "\n"
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    tokens = []
    position = 0
    while position < len(text):
        if blank := _SPACE.match(text, position):
            position = blank.end()
        elif word := _PLAIN_WORD.match(text, position):
            position = word.end()
            tokens.append(word[1].lower())
        else:
            token = _longest(text, position)
            position += len(token)
            tokens.append(_spell(token))
    return [token for token in tokens if token not in PUNCTUATION]


def _longest(text: str, position: int) -> str:
    best, token = 0, ""
    for pattern in _PATTERNS:
        match = pattern.match(text, position)
        if match and match.end() - position > best:
            best = match.end() - position
            token = match[match.lastindex or 0]
    return token


def _spell(token: str) -> str:
    """Return the token as the program prints it."""
    if token in _SPELLINGS:
        return _SPELLINGS[token]
    if set(token) <= {".", " ", "\xa0"}:
        return "..." if len(token) > 1 else "."
    if token in ("---", "----"):
        return "--"
    token = token.replace("(", "-lrb-").replace(")", "-rrb-").replace("\xad", "").replace(" ", "\xa0").lower()
    return re.sub(rf"^{_QUOTE}(?=(?:[msd]|re|ve|ll)$)|(?<=^n){_QUOTE}(?=t$)", "'", token)
