// What a reader would see, read from computed styles and boxes. Evaluated by test_pages.py, which calls one of these.
({
  // Every piece of text that is shown: its words, its size in pixels, its contrast with what lies behind it.
  texts() {
    const found = [], walk = document.createTreeWalker(document.body || document.documentElement, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const node = walk.currentNode, element = node.parentElement, words = node.data.trim();
      if (!words || element.closest('style, title, desc, .skip, .quiet, metadata') || !element.checkVisibility()) continue;
      const style = getComputedStyle(element), figure = element.closest('svg');
      const scale = figure && figure.viewBox.baseVal ? figure.getBoundingClientRect().width / figure.viewBox.baseVal.width : 1;
      const size = parseFloat(style.fontSize) * scale, bold = parseInt(style.fontWeight) >= 700;
      const [back, front] = this.painted(element, figure ? style.fill : style.color, figure ? style.fillOpacity : 1);
      found.push({ words, size, figure: !!figure, contrast: this.contrast(back, front),
                   large: size >= 24 || (bold && size >= 18.66) });
    }
    return found;
  },
  // Lines of data in figures; what is thinner than a pixel leads to a label or is one of many intervals.
  lines() {
    const found = [];
    for (const path of document.querySelectorAll('.series path')) {
      const style = getComputedStyle(path);
      if (style.stroke === 'none' || parseFloat(style.strokeWidth) < 1 || style.fill !== 'none') continue;
      found.push(this.contrast(...this.painted(path, style.stroke, style.strokeOpacity)));
    }
    return found;
  },
  figures() {
    return [...document.querySelectorAll('svg.figure')].map(figure => {
      const box = figure.getBoundingClientRect();
      return { name: figure.querySelector('title').textContent, section: figure.closest('section').id,
               width: box.width, height: box.height, marks: figure.querySelectorAll('.series, .patch, path').length,
               texts: figure.querySelectorAll('text').length };
    });
  },
  // Texts of one figure that lie on each other or leave it.
  clashes() {
    const found = [];
    for (const figure of document.querySelectorAll('svg.figure')) {
      const frame = figure.getBoundingClientRect(), name = figure.querySelector('title').textContent;
      const texts = [...figure.querySelectorAll('text')].filter(text => text.textContent.trim());
      const boxes = texts.map(text => text.getBoundingClientRect());
      boxes.forEach((a, i) => {
        if (a.left < frame.left - 3 || a.right > frame.right + 3 || a.top < frame.top - 3 || a.bottom > frame.bottom + 3)
          found.push(`${name}: "${texts[i].textContent}" leaves the figure`);
        boxes.slice(i + 1).forEach((b, j) => {
          const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
          const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
          if (across > 2 && down > 5)
            found.push(`${name}: "${texts[i].textContent}" on "${texts[i + 1 + j].textContent}"`);
        });
      });
    }
    return found;
  },
  // Boxes whose content is wider than they are, and whether a keyboard can scroll them.
  scrollers() {
    const found = [];
    for (const box of document.querySelectorAll('body *')) {
      if (box.scrollWidth <= box.clientWidth + 1 || !['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) continue;
      const table = box.querySelector('table');
      found.push({ what: box.className || box.tagName, table: !!table,
                   reachable: box.tabIndex === 0 || !!box.querySelector('a[href], input') });
    }
    return found;
  },
  regions() {
    return [...document.querySelectorAll('table')].map(table => {
      const box = table.parentElement;
      return [box.tabIndex, box.getAttribute('role'), box.getAttribute('aria-label')];
    });
  },
  // [background, text] as they end up, through every ancestor's background and opacity.
  painted(element, colour, alpha) {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.unshift(getComputedStyle(e));
    const paint = (i, behind) => {
      const inner = this.over(this.rgba(chain[i].backgroundColor), behind);
      const front = () => { const c = this.rgba(colour); return this.over([...c.slice(0, 3), c[3] * alpha], inner); };
      const [back, text] = i + 1 < chain.length ? paint(i + 1, inner) : [inner, front()];
      const opacity = parseFloat(chain[i].opacity);
      return [this.over([...back, opacity], behind), this.over([...text, opacity], behind)];
    };
    return paint(0, [255, 255, 255]);
  },
  over([r, g, b, a], behind) { return [r, g, b].map((c, i) => c * a + behind[i] * (1 - a)); },
  rgba(text) {
    const parts = text.match(/[\d.]+/g).map(Number);
    return [...parts.slice(0, 3), parts.length > 3 ? parts[3] : 1];
  },
  contrast(a, b) {
    const light = c => {
      const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  },
})
