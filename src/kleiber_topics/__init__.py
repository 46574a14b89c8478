"""Topics: one folder each, with its data, objectives, evaluations, studies and configs, as an extension of kleiber.

A topic imports only what packages of `kleiber` offer in their `__all__`, and never another topic; `kleiber` imports no
topic. So each can be taken out, or copied as the start of a package of one's own.
"""
