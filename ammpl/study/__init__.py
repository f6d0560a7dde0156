"""Studies: :func:`run` a space, :func:`open` a study's folder; :func:`doctor`, :func:`prepare`, :func:`schema` before.

Rooms, each using those before it: ``space`` (what a study asks), ``record`` (what lasts), ``plan`` (what runs next),
``result`` (what came out), ``views`` (where people look), ``engine`` (where trials run). The modules beside them are
the nouns they share (``trial``, addresses) and what can be done with a study: ``study``, ``rerun``, ``status``, …
"""

from ammpl.api import Study, open, run
from ammpl.before import doctor, prepare, schema

__all__ = ["Study", "doctor", "open", "prepare", "run", "schema"]
