"""`python -m doctor`: whether this machine, or this container, can run the service, and what to do where it cannot.

`facts` says what there is to know, `probes` finds it out, `checks` judges it. Judging is pure, so that every driver, card and
server can be tested without having it. Nothing here imports torch, but for `library_probe`, which runs as a process of its own: a
library that does not load, or takes the process down, is then a finding, too.
"""
