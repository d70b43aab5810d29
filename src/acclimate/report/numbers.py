"""Numbers as people read them: digits that the interval supports, and units."""

import math
import re

NONE = "-"  # in place of a number that is not known
MINUS = "\u2212"
UNITS = {"bits_per_byte": "bits per byte", "macro_f1": "macro F1"}


def unit(metric: str) -> str:
    """A metric in words.

    >>> unit("bits_per_byte"), unit("accuracy")
    ('bits per byte', 'accuracy')
    """
    return UNITS.get(metric, metric.replace("_", " "))


def digits(low: float | None, high: float | None) -> int:
    """Decimals worth printing: down to the first digit of half the interval's width, at least 2 and at most 4 decimals.

    >>> digits(0.80, 0.92), digits(0.015, 0.025), digits(None, None)
    (2, 3, 3)
    """
    width = (high if high is not None else math.nan) - (low if low is not None else math.nan)
    if not width > 0:
        return 3
    return max(2, min(4, -math.floor(math.log10(width / 2))))


def number(value: float | None, decimals: int = 3, sign: bool = False) -> str:
    """One number; a dash where there is none. Large ones keep four significant digits.

    >>> number(0.8571, 2, sign=True), number(23456.7), number(-0.0004), number(None)
    ('+0.86', '23457', '0.000', '-')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) >= 100:
        decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def interval(low: float | None, high: float | None, decimals: int = 3) -> str:
    """An interval in brackets, or nothing.

    >>> interval(0.8, 0.92, 2), interval(None, None)
    ('[0.80, 0.92]', '')
    """
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{number(low, decimals)}, {number(high, decimals)}]"


def p_value(p: float | None) -> str:
    """A p as papers print it.

    >>> p_value(0.0004), p_value(0.0213), p_value(0.4), p_value(None)
    ('<0.001', '0.021', '0.40', '-')
    """
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(value: float | None, what: str = "") -> str:
    """A large number with its prefix.

    >>> count(5_210_000), count(3.4e15, "FLOP"), count(812), count(None)
    ('5.21 M', '3.4 PFLOP', '812', '-')
    """
    if value is None:
        return NONE
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g} {prefix}{what}"
    return f"{value:.3g} {what}".strip()


def memory(value: float | None) -> str:
    """Bytes in binary units.

    >>> memory(3 * 2**30), memory(5_000_000), memory(None)
    ('3 GiB', '4.77 MiB', '-')
    """
    if value is None:
        return NONE
    for size, prefix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds.

    >>> duration(7), duration(192), duration(7500), duration(200_000), duration(0.25), duration(None)
    ('7 s', '3 min 12 s', '2 h 5 min', '2 d 7 h', '0.25 s', '-')
    """
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for big, small, size, step in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // step
            return f"{whole // size} {big}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def percent(share: float | None) -> str:
    """A share in percent.

    >>> percent(0.0213), percent(0), percent(None)
    ('2.1 %', '0 %', '-')
    """
    if share is None:
        return NONE
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.1f} %".replace(".0 %", " %")


def minus(text: str) -> str:
    """Typographic minus signs in front of digits.

    >>> minus("-0.5 of 3-4") == MINUS + "0.5 of 3-4"
    True
    """
    return re.sub(r"(?<![\w.)])-(?=\d)", MINUS, text)
