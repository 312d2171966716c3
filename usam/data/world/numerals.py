"""Whole numbers from 0 to 9999 in English words and in Chinese numerals, each in one way only.

English is British: "three hundred and five", without hyphens. Chinese is as it is spoken: 两 for 2 before 百 and 千,
二 elsewhere (两千两百二十二); one 零 for any gap between digits (一千零五), none at the end (三百五十); 十 alone at the
beginning of a number (十五), 一十 inside one (一百一十五).
"""

from __future__ import annotations

# fmt: off
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DIGITS = "零一二三四五六七八九"
UNITS = ((1000, "千"), (100, "百"), (10, "十"), (1, ""))
LAST = 9999


def english(number: int) -> str:
    """A number in words.

    Raises:
        ValueError: it is not within 0 and 9999.
    """
    _check(number)
    thousands, hundreds, rest = number // 1000, number // 100 % 10, number % 100
    words = [f"{ONES[thousands]} thousand"] if thousands else []
    words += [f"{ONES[hundreds]} hundred"] if hundreds else []
    if rest or not words:
        below = ONES[rest] if rest < 20 else TENS[rest // 10] + (f" {ONES[rest % 10]}" if rest % 10 else "")
        words += ["and", below] if words else [below]
    return " ".join(words)


def chinese(number: int) -> str:
    """A number in Chinese numerals.

    Raises:
        ValueError: it is not within 0 and 9999.
    """
    _check(number)
    if number == 0:
        return DIGITS[0]
    said, gap = "", False
    for value, unit in UNITS:
        digit = number // value % 10
        if digit == 0:
            gap = bool(said)
            continue
        said += DIGITS[0] if gap else ""
        gap = False
        if not (value == 10 and digit == 1 and not said):
            said += "两" if digit == 2 and value >= 100 else DIGITS[digit]
        said += unit
    return said


def _check(number: int) -> None:
    if not 0 <= number <= LAST:
        raise ValueError(f"{number} is not within 0 and {LAST}")
