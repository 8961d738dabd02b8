"""What a page holds, as a browser would see it."""

from html.parser import HTMLParser

VOID = {'meta', 'img', 'br'}


class Page(HTMLParser):
    """A parsed page, whose elements are all closed in their order.

    Attributes:
        tags (list): ``(name, attributes)`` of each element.
        texts (dict): ``id`` to the text inside.
        text (str): All of the text.
    """

    def __init__(self, content):
        super().__init__()
        self.tags, self.texts, self.text = [], {}, ''
        self._open = []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if 'id' in attrs:
            assert attrs['id'] not in self.texts, attrs['id']
            self.texts[attrs['id']] = ''
        if tag not in VOID:
            self._open.append((tag, attrs.get('id')))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        for _, anchor in self._open:
            if anchor:
                self.texts[anchor] += data

    def all(self, tag):
        """Attributes of all elements of a name."""
        return [attrs for name, attrs in self.tags if name == tag]

    def check(self):
        """It needs nothing else, and its links lead somewhere."""
        assert not self.all('script') and not self.all('link')
        for _, attrs in self.tags:
            assert not [key for key in attrs if key.startswith('on')]
            for key in ('href', 'src', 'xlink:href'):
                target = attrs.get(key, '#')
                if target.startswith('#'):
                    assert target[1:] in ('', *self.texts), target
                else:
                    kind = target.split(';')[0]
                    assert kind in ('data:image/jpeg', 'data:image/svg+xml')
