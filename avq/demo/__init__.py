"""``avq demo``: the whole story on built-in scenes."""

from avq.demo.story import Result, builtin_recipe, run_demo

__all__ = ["Result", "builtin_recipe", "run_demo"]
