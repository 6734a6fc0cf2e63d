"""Reads YAML and JSON that nobody has read before: plain data only, and where it stands.

No tags, anchors, aliases or merge keys (a few hundred bytes of aliases unfold to gigabytes), no
key twice, no dates, nothing that is not finite. Runs in the sandbox's process.
"""

from __future__ import annotations

import math

import yaml

from grape_trainer.scoring.cost_source import Problem, ProgramError

MAX_DOCUMENT_NODES = 4000
MAX_DOCUMENT_DEPTH = 12

_MAP, _SEQUENCE = 'tag:yaml.org,2002:map', 'tag:yaml.org,2002:seq'
_SCALARS = {f'tag:yaml.org,2002:{name}' for name in ('str', 'int', 'float', 'bool', 'null')}

Places = dict[str, list[int]]  # 'costs.0.kind' -> [line, column], from 1


def read_document(text: str) -> tuple[object, Places]:
    """Return what a document holds, and where each of its values stands.

    JSON is read as the YAML that it nearly is; tabs, which YAML does not take, count as spaces.

    Raises:
        ProgramError: not YAML, or YAML that is more than plain data.

    """
    try:
        _check_events(text)
        loader = yaml.SafeLoader(_without_tabs(text))
        try:
            node = loader.get_single_node()
            if node is None:
                raise _refused('the document is empty; expected a mapping with costs')
            return _Plain(loader).read(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (None, None) if mark is None else (mark.line + 1, mark.column + 1)
        text = error.problem or error.context or 'it cannot be read'
        raise ProgramError([Problem(f'not YAML or JSON: {text}', *place)]) from error
    except yaml.YAMLError as error:
        raise _refused(f'not YAML or JSON: {str(error).splitlines()[0]}') from error
    except RecursionError as error:
        raise _refused('the document is nested too deeply') from error


def _check_events(text: str) -> None:
    """Refuse anchors and aliases, size and depth, before anything is built."""
    nodes = depth = 0
    for event in yaml.parse(_without_tabs(text), yaml.SafeLoader):
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, 'anchor', None):
            raise ProgramError([Problem('anchors and aliases are not allowed', line, column)])
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if nodes > MAX_DOCUMENT_NODES or depth > MAX_DOCUMENT_DEPTH:
            message = (
                f'more than {MAX_DOCUMENT_NODES} values or {MAX_DOCUMENT_DEPTH} levels; a cost '
                'program needs few of both'
            )
            raise ProgramError([Problem(message, line, column)])


class _Plain:
    """Turns checked nodes into dictionaries, lists, text and numbers."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._places: Places = {}

    def read(self, node: yaml.Node) -> tuple[object, Places]:
        return self._value(node, ''), self._places

    def _value(self, node: yaml.Node, path: str) -> object:
        self._places[path] = [node.start_mark.line + 1, node.start_mark.column + 1]
        prefix = f'{path}.' if path else ''
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._mapping(node, prefix)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE:
            return [self._value(item, f'{prefix}{i}') for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            kind = node.tag.rpartition(':')[2][:40]
            raise self._error(node, f"'{kind}' is not allowed; expected text, numbers or lists")
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, prefix: str) -> dict[str, object]:
        content: dict[str, object] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(':str'):
                raise self._error(key, 'a key is a word')
            if key.value in content:
                raise self._error(key, f"the key '{key.value[:40]}' is there twice")
            content[key.value] = self._value(value, f'{prefix}{key.value}')
            self._places[f'{prefix}{key.value}'] = [
                key.start_mark.line + 1,
                key.start_mark.column + 1,
            ]
        return content

    def _scalar(self, node: yaml.ScalarNode) -> object:
        try:
            value = self._loader.construct_object(node)
        except ValueError as error:
            raise self._error(node, 'not a number that can be read') from error
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
            raise self._error(node, 'a number this large is not allowed')
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(node, 'a number that is not finite is not allowed')
        return value

    @staticmethod
    def _error(node: yaml.Node, message: str) -> ProgramError:
        mark = node.start_mark
        return ProgramError([Problem(message, mark.line + 1, mark.column + 1)])


def _without_tabs(text: str) -> str:
    return text.replace('\t', ' ') if text.lstrip()[:1] in ('{', '[') else text


def _refused(message: str) -> ProgramError:
    return ProgramError([Problem(message)])
