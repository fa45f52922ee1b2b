"""Who knows the wrappers that the live agents of a learner library were trained behind."""

WRAPPERS_OF: dict[str, str] = {}
"""Path of a subclass of `dreamgym.data.agent_wrappers.AgentWrappers`, by the library's module.

`dreamgym.train.registry` fills it, and `dreamgym.data` reads it, which knows no library.
"""
