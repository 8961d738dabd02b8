"""Files that are no checkpoints, and checkpoints that want to run code."""

import io
import zipfile

import torch


class _Opens:
    """Pickles as a call of ``open`` that creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def code(path, marker):
    """A checkpoint whose reading creates the marker, in PyTorch's own way."""
    weights = {'w': torch.zeros(2)}
    torch.save({'state_dict': weights, 'extra': _Opens(marker)}, path)


def old_code(path, marker):
    """The same before PyTorch 1.6, without an archive."""
    content = {'state_dict': {'w': torch.zeros(2)}, 'extra': _Opens(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def code_by_getattr(path, marker):
    """The same by nothing but what MMEngine's own checkpoints need.

    ``getattr`` leads to ``eval``, which becomes the ``__setstate__`` of a
    ``HistoryBuffer``, which is then given a state.
    """

    def name(module, attribute):
        return f'c{module}\n{attribute}\n'.encode()

    def text(value):
        value = value.encode()
        return b'X' + len(value).to_bytes(4, 'little') + value

    get = name('builtins', 'getattr')
    builtins = get + get + text('__self__') + b'\x86R'
    run = get + builtins + text('eval') + b'\x86R'
    pickled = (
        b'\x80\x02}'
        + text('state_dict')
        + name('mmengine.logging.history_buffer', 'HistoryBuffer')
        + b')\x81}'
        + text('__setstate__')
        + run
        + b'sb'
        + text(f'open({str(marker)!r}, "w").close()')
        + b'bs.'
    )
    whole = io.BytesIO()
    torch.save({}, whole)
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(path, 'w') as target,
    ):
        for entry in source.namelist():
            is_pickle = entry.endswith('data.pkl')
            target.writestr(
                entry, pickled if is_pickle else source.read(entry)
            )


def text(path, marker):
    path.write_text('<html>404: not found</html>')


def text_like_a_pickle(path, marker):
    path.write_text('class Net:\n    pass\n')


def image(path, marker):
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100))


def empty(path, marker):
    path.write_bytes(b'')


def truncated(path, marker):
    torch.save({'state_dict': {'w': torch.zeros(5000)}}, path)
    path.write_bytes(path.read_bytes()[:9000])


def pickled_list(path, marker):
    torch.save([torch.zeros(2), 1], path)


# What is said of each.
CASES = {
    code: r'is refused: reading it would run code.*\((io\.)?open\)',
    old_code: r'is refused: reading it would run code.*\((io\.)?open\)',
    code_by_getattr: r'is refused: reading it would run code.*\(getattr\)',
    text: 'cut off or no PyTorch checkpoint',
    text_like_a_pickle: 'cut off or no PyTorch checkpoint',
    image: 'cut off or no PyTorch checkpoint',
    empty: r'\(0 bytes\): it is cut off or no PyTorch checkpoint',
    truncated: 'cut off or no PyTorch checkpoint',
    pickled_list: 'holds no weights but one object of type list',
}
