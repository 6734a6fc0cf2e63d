"""Guided-cost preference generation (GRAPE Sec. 2.3): from recorded episodes to pairs."""
