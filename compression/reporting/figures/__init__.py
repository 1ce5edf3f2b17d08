"""Every figure of the lab: functions that take numbers and return a matplotlib figure, in one style.

`style` holds the colours, `runs` what every run draws, the other modules what one family of methods draws.
"""
