"use strict";
// What a report does: it unpacks its rows, lists images, sorts classes, draws plots that come into
// view, and lets a reader move through the map. It sends nothing and asks for nothing.
(async () => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const pictures = JSON.parse(byId("pictures").textContent) || {};
  const SCORED = 1, RIGHT = 2, TRAINED_ON = 4;
  const PAGE = 60;

  // ---- Text of data, shown as text: what cannot be seen becomes an escape.
  const hidden = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
  const shown = (text) => String(text).replace(hidden, (c) => {
    if (c === "\u200c" || c === "\u200d") return c;
    const code = c.codePointAt(0);
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
  });
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value != null) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const grouped = (number) => number.toLocaleString("en-US");
  const percent = (share) => (100 * share).toFixed(1) + "\u202f%";
  let toldTimer;
  const tell = (text) => {
    byId(dialog.open ? "images-note" : "told").textContent = text;
    clearTimeout(toldTimer);
    toldTimer = setTimeout(() => { byId("told").textContent = ""; }, 4000);
  };

  // ---- Rows: columns of numbers, and names.
  const unpacked = async (text) => {
    let bytes;
    if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(text);
    else {
      const binary = atob(text);
      bytes = new Uint8Array(binary.length);
      for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    }
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };
  const buffer = await unpacked(data.rows.data);
  data.rows.data = "";
  const kinds = {1: Uint8Array, 2: Uint16Array, 4: Uint32Array};
  const column = {};
  for (const [name, size, offset, length] of data.rows.columns) {
    column[name] = new kinds[size](buffer.slice(offset, offset + length));
  }
  const n = data.rows.rows;
  const {texts, sets, labels, splits} = data.rows;
  const several = labels.length > 0;
  let namesOfRows = null;
  const nameOf = (row) => {
    if (!namesOfRows) {
      const [offset, length] = data.rows.names;
      namesOfRows = new TextDecoder().decode(new Uint8Array(buffer, offset, length)).split("\0");
    }
    return namesOfRows[row];
  };
  const labelOf = (row) => column.label[row] ? texts[column.label[row] - 1] : "";
  const predictedOf = (row) => column.predicted[row] ? texts[column.predicted[row] - 1] : "";
  const isScored = (row) => (column.flags[row] & SCORED) !== 0;
  const isWrong = (row) => (column.flags[row] & (SCORED | RIGHT)) === SCORED;

  // ---- Tiles and lists of images.
  const picture = (row) => {
    const uri = pictures[row];
    if (uri) return make("img", {src: uri, alt: "", loading: "lazy", decoding: "async"});
    return make("div", {class: "no-picture"}, make("span", {}, shown(nameOf(row).split("/").pop())));
  };
  const tile = (row) => {
    const name = nameOf(row);
    const caption = make("figcaption");
    if (isScored(row)) {
      const wrong = isWrong(row);
      const sure = several ? "" : " " + percent(column.confidence[row] / 65535);
      const verdict = make("span", {class: "verdict " + (wrong ? "wrong" : "right")},
        make("span", {class: "mark", title: wrong ? "wrong" : "right"}, wrong ? "\u2717" : "\u2713"),
        make("span", {}, make("b", {}, shown(predictedOf(row))), sure));
      caption.append(verdict);
      if (several) {
        caption.append(make("span", {}, "labels: " + shown(labelOf(row) || "none")),
          make("span", {}, "doubt: " + shown(labels[column.doubtful[row]]) + " " + percent(column.likelihood[row] / 65535) + " right"));
      } else {
        if (wrong) caption.append(make("span", {}, "labelled ", make("b", {}, shown(labelOf(row))), " " + percent(column.likelihood[row] / 65535)));
      }
      if (column.flags[row] & TRAINED_ON) caption.append(make("span", {class: "wrong"}, "trained on"));
    } else {
      caption.append(make("span", {}, labelOf(row) ? "labelled " + shown(labelOf(row)) : "no label"),
        make("span", {class: "name"}, "not scored"));
    }
    caption.append(make("span", {class: "name", title: shown(name)}, shown(name)));
    return make("figure", {class: "tile"}, picture(row), caption);
  };
  const fill = (list, more, rows, first = PAGE) => {
    let done = 0;
    list.replaceChildren();
    const add = (count) => {
      const next = rows.slice(done, done + count);
      list.append(...next.map((row) => make("li", {}, tile(row))));
      done += next.length;
      more.hidden = done >= rows.length;
      more.textContent = "Show more (" + grouped(rows.length - done) + " left)";
    };
    more.onclick = () => {
      const from = list.children.length;
      add(PAGE);
      const added = list.children[from];
      if (added) { added.tabIndex = -1; added.focus(); }
    };
    add(first);
  };

  // ---- CSV of rows.
  const quoted = (text) => /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  const csv = (rows) => {
    const lines = ["path,label,predicted,probability,split"];
    for (const row of rows) {
      const sure = isScored(row) ? (column.confidence[row] / 65535).toFixed(4) : "";
      lines.push([nameOf(row), labelOf(row), predictedOf(row), sure, splits[column.split[row]] || ""].map(quoted).join(","));
    }
    return lines.join("\n") + "\n";
  };
  const copy = async (rows) => {
    const text = csv(rows);
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", {style: "position:fixed;left:-99rem"});
      area.value = text;
      (document.querySelector("dialog[open]") || document.body).append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    tell(grouped(rows.length) + (rows.length === 1 ? " file copied" : " files copied") + " as CSV");
  };
  const save = (rows) => {
    const address = URL.createObjectURL(new Blob([csv(rows)], {type: "text/csv"}));
    make("a", {href: address, download: "images.csv"}).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };

  // ---- The dialog that lists images.
  const dialog = byId("images");
  let listed = [];
  const list = (title, rows) => {
    listed = rows;
    byId("images-title").textContent = title;
    const bare = rows.filter((row) => !pictures[row]).length;
    byId("images-note").textContent = grouped(rows.length) + (rows.length === 1 ? " image" : " images") +
      (bare ? "; " + grouped(bare) + " without a picture on this page" : "");
    fill(byId("images-tiles"), byId("images-more"), rows);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };
  byId("images-close").onclick = () => dialog.close();
  byId("images-csv").onclick = () => copy(listed);
  byId("images-save").onclick = () => save(listed);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  const rowsWhere = (test) => {
    const rows = [];
    for (let row = 0; row < n; row++) if (test(row)) rows.push(row);
    return rows;
  };
  const worst = (rows) => rows.sort((a, b) =>
    (column.likelihood[a] - column.confidence[a]) - (column.likelihood[b] - column.confidence[b]));
  // Right ones: those that the model is least sure of first.
  const byDoubt = (rows) => rows.sort((a, b) => column.confidence[a] - column.confidence[b]);
  const cell = (truth, predicted) => {
    const rows = rowsWhere((row) => isScored(row) &&
      column.label[row] === truth + 1 && column.predicted[row] === predicted + 1);
    return truth === predicted ? byDoubt(rows) : worst(rows);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.truth !== undefined) {
      const truth = Number(button.dataset.truth), predicted = Number(button.dataset.predicted);
      const title = truth === predicted
        ? "Right: " + shown(texts[truth]) + ", the least sure first"
        : shown(texts[truth]) + " predicted as " + shown(texts[predicted]) + ", the worst first";
      list(title, cell(truth, predicted));
    } else if (button.dataset.rows !== undefined) {
      list(button.dataset.title, button.dataset.rows.split(",").map(Number));
    }
  });

  // ---- Worst errors.
  if (byId("errors-tiles")) {
    fill(byId("errors-tiles"), byId("errors-more"), data.worst, 24);
    byId("errors-csv").onclick = () => copy(data.worst);
  }

  // ---- Classes.
  const has = (code, label) => code > 0 && sets[code - 1].includes(label);
  const classTable = (place, classes) => {
    const count = classes.name.length, LIMIT = 100;
    const order = [...Array(count).keys()];
    const point = (name) => (i) => classes[name][i] ? classes[name][i][0] : -1;
    const columns = [
      ["name", several ? "Label" : "Class", null],
      ["images", "Images", (i) => classes.images[i]],
      ["precision", "Precision", point("precision")],
      ["recall", "Recall", point("recall")],
      ["f1", "F1", point("f1")],
    ];
    let by = count > 1 ? "f1" : "name", rising = true, filter = "", all = false;
    const body = make("tbody"), note = make("p", {class: "small soft"});
    const heads = new Map();
    const share = (values) => {
      const box = make("td", {class: "number"});
      if (!values) { box.append("\u2013"); return box; }
      const meter = make("span", {class: "meter"}, make("i"));
      meter.firstChild.style.width = 100 * values[0] + "%";
      box.append(percent(values[0]), make("small", {}, percent(values[1]) + " to " + percent(values[2])), meter);
      return box;
    };
    const wrongOf = (label, missed) => worst(rowsWhere((row) => isScored(row) && (several
      ? has(column.label[row], label) === missed && has(column.predicted[row], label) !== missed
      : isWrong(row) && (missed ? column.label : column.predicted)[row] === label + 1)));
    const counts = {missed: new Uint32Array(count), extra: new Uint32Array(count)};
    for (let row = 0; row < n; row++) {
      if (!isWrong(row)) continue;
      if (!several) { counts.missed[column.label[row] - 1]++; counts.extra[column.predicted[row] - 1]++; continue; }
      const truth = sets[column.label[row] - 1], predicted = sets[column.predicted[row] - 1];
      for (const label of truth) if (!predicted.includes(label)) counts.missed[label]++;
      for (const label of predicted) if (!truth.includes(label)) counts.extra[label]++;
    }
    const button = (label, missed) => {
      const number = (missed ? counts.missed : counts.extra)[label];
      if (!number) return "0";
      const name = shown(classes.name[label]);
      const title = missed ? "Missed: labelled " + name : "Wrongly called " + name;
      return make("button", {type: "button", class: "link", "aria-label": title + ", show " + number,
        onclick: () => list(title, wrongOf(label, missed))}, grouped(number));
    };
    const draw = () => {
      const key = columns.find((entry) => entry[0] === by)[2];
      const names = classes.name;
      order.sort((a, b) => (key ? key(a) - key(b) : names[a] < names[b] ? -1 : 1) * (rising ? 1 : -1) || a - b);
      const matching = filter ? order.filter((i) => names[i].toLowerCase().includes(filter)) : order;
      const drawn = all ? matching : matching.slice(0, LIMIT);
      body.replaceChildren(...drawn.map((i) => make("tr", {},
        make("th", {scope: "row"}, shown(names[i])),
        make("td", {class: "number"}, grouped(classes.images[i])),
        share(classes.precision[i]), share(classes.recall[i]), share(classes.f1[i]),
        make("td", {class: "number"}, button(i, true)), make("td", {class: "number"}, button(i, false)))));
      note.replaceChildren(grouped(drawn.length) + " of " + grouped(count) + " shown. ");
      if (drawn.length < matching.length) {
        note.append(make("button", {type: "button", class: "link only-screen", onclick: () => { all = true; draw(); }}, "Show all"));
      }
      note.hidden = count <= LIMIT;
      for (const [name, th] of heads) th.setAttribute("aria-sort", name !== by ? "none" : rising ? "ascending" : "descending");
      for (const [name, th] of heads) th.querySelector("i").textContent = name !== by ? "" : rising ? " \u25b2" : " \u25bc";
    };
    const head = make("tr");
    for (const [name, text] of columns) {
      const th = make("th", {scope: "col", class: name === "name" ? "" : "number"},
        make("button", {type: "button", onclick: () => {
          if (by === name) rising = !rising; else { by = name; rising = true; }
          draw();
        }}, text, make("i", {"aria-hidden": "true", style: "font-style:normal"})));
      heads.set(name, th);
      head.append(th);
    }
    head.append(make("th", {scope: "col", class: "number"}, "Missed"), make("th", {scope: "col", class: "number"}, several ? "Too many" : "Wrongly called so"));
    const table = make("table", {class: "class-table"}, make("thead", {}, head), body);
    if (count > 20) {
      place.append(make("div", {class: "class-tools only-screen"}, make("label", {}, "Find ",
        make("input", {type: "search", oninput: (event) => { filter = event.target.value.toLowerCase(); draw(); }}))));
    }
    place.append(make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Classes"}, table), note);
    draw();
  };
  classTable(byId("class-table"), data.classes);

  // ---- Plots, drawn when they come into view, or when the browser has nothing to do: a page that
  // is printed does not wait for them.
  const embedded = new Map();
  // Tab leaves out what does nothing in a plot, and shows which of its tools it has reached.
  const focused = new CSSStyleSheet();
  focused.replaceSync(":focus-visible { outline: 3px solid #0b57a4 !important; outline-offset: -3px; }");
  const mendFocus = (root) => {
    root.adoptedStyleSheets = [...root.adoptedStyleSheets, focused];
    for (const element of root.querySelectorAll("*")) {
      if (element.classList.contains("bk-events")) element.tabIndex = -1;
      if (element.shadowRoot) mendFocus(element.shadowRoot);
    }
  };
  const embed = (element, item) => {
    if (!embedded.has(element)) {
      embedded.set(element, Bokeh.embed.embed_item(item, element).then((views) => {
        for (const child of element.children) if (child.shadowRoot) mendFocus(child.shadowRoot);
        return views;
      }));
    }
    return embedded.get(element);
  };
  const places = [...document.querySelectorAll("[data-plot]")].map((element) => [element, () => embed(element, data.plots[element.dataset.plot])]);
  places.push([byId("map-plot"), () => drawMap()]);
  const pending = new Map(places);
  const draw = (element) => {
    const start = pending.get(element);
    pending.delete(element);
    return start ? start() : null;
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
  }, {rootMargin: "200px"});
  for (const [element] of places) watcher.observe(element);
  const MANY = 5000;
  const whenIdle = window.requestIdleCallback || ((call) => setTimeout(call, 200));
  const drawNext = async () => {
    const [element] = [...pending.keys()].filter((place) => n <= MANY || place.id !== "map-plot");
    if (!element) return;
    await draw(element);
    whenIdle(drawNext);
  };
  addEventListener("beforeprint", () => { for (const [element] of places) draw(element); });

  // ---- The map.
  const FEW = 20000;
  const SHAPES = {
    circle: "M7 2a5 5 0 1 0 .01 0z", triangle: "M7 2 12.5 12H1.5z", square: "M2.5 2.5h9v9h-9z",
    diamond: "M7 1 11.5 7 7 13 2.5 7z", inverted_triangle: "M7 12 1.5 2h11z", plus: "M6 1h2v5h5v2H8v5H6V8H1V6h5z",
    star: "m7 .8 1.8 4.1 4.4.4-3.3 3 1 4.4L7 10.4l-3.9 2.3 1-4.4-3.3-3 4.4-.4z", hex: "M4 2h6l3 5-3 5H4L1 7z",
    cross: "m3 1.6 4 4 4-4L12.400 3l-4 4 4 4-1.4 1.400-4-4-4 4L1.600 11l4-4-4-4z", dot: "M7 5a2 2 0 1 0 .01 0z",
  };
  let map = null;
  const drawMap = async () => {
    const element = byId("map-plot");
    const views = await embed(element, data.map);
    const [view] = views;
    const plot = view.model;
    const looks = [];
    data.looks.forEach(([colour, marker], k) => {
      const renderer = plot.renderers.find((one) => one.name === "points" + k);
      renderer.glyph.size = {value: n > 5000 ? 4 : n > 1000 ? 6 : 8};
      looks.push({source: renderer.data_source, renderer, colour, marker});
    });
    const mark = plot.renderers.find((one) => one.name === "mark").data_source;
    map = {view, plot, looks, mark, chosen: [], hiddenGroups: new Set(), current: -1};
    const modes = byId("map-mode");
    if (splits.length < 2) modes.querySelector("[value=split]").remove();
    const allBox = byId("map-all");
    byId("map-all-label").hidden = n <= FEW;
    byId("map-count").textContent = grouped(n);
    // Of many points every error is drawn, and as many of the others as there is room for.
    const few = () => {
      if (n <= FEW || allBox.checked) return null;
      const drawn = new Uint8Array(n);
      let left = FEW;
      for (const row of data.worst.slice(0, FEW / 2)) { drawn[row] = 1; left--; }
      const step = Math.max(1, Math.floor(n / left));
      for (let row = 0; row < n; row += step) drawn[row] = 1;
      return drawn;
    };
    const groupsBy = {
      label: () => byText((row) => column.label[row], "no label"),
      predicted: () => byText((row) => column.predicted[row], "not scored"),
      split: () => ({names: splits.map((name) => name || "no split"), look: splits.map((_, i) => Math.min(i, 9)), group: (row) => column.split[row]}),
      error: () => ({
        names: ["right", "wrong", "not scored"], look: [0, 1, 9],
        group: (row) => !isScored(row) ? 2 : isWrong(row) ? 1 : 0,
      }),
    };
    const byText = (code, none) => {
      const counts = new Map();
      for (let row = 0; row < n; row++) { const c = code(row); if (c) counts.set(c, (counts.get(c) || 0) + 1); }
      const most = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
      const room = most.length <= 9 ? 9 : 8;
      const group = new Map(most.slice(0, room).sort((a, b) => a[0] - b[0]).map(([c], i) => [c, i]));
      const names = [...group.keys()].map((c) => texts[c - 1]);
      const look = names.map((_, i) => i);
      const rest = names.length;
      if (most.length > room) { names.push("other (" + grouped(most.length - room) + ")"); look.push(8); }
      names.push(none); look.push(9);
      return {names, look, group: (row) => { const c = code(row); return c ? group.get(c) ?? rest : names.length - 1; }};
    };
    const redraw = () => {
      const {names, look, group} = groupsBy[modes.value]();
      const drawn = few();
      const counts = new Uint32Array(names.length), points = names.map(() => []);
      for (let row = 0; row < n; row++) {
        const g = group(row);
        counts[g]++;
        if ((!drawn || drawn[row]) && !map.hiddenGroups.has(g)) points[g].push(row);
      }
      map.group = group;
      const byLook = looks.map(() => []);
      points.forEach((rows, g) => { for (const row of rows) byLook[look[g]].push(row); });
      byLook.forEach((rows, k) => {
        looks[k].source.selected.indices = [];
        looks[k].source.data = {
          x: Float32Array.from(rows, (row) => column.x[row]),
          y: Float32Array.from(rows, (row) => column.y[row]),
          row: Int32Array.from(rows),
        };
      });
      map.drawnRows = byLook.flat();
      const legend = byId("map-legend");
      legend.replaceChildren(...names.map((name, g) => {
        if (!counts[g]) return "";
        const {colour, marker} = looks[look[g]];
        const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        icon.setAttribute("viewBox", "0 0 14 14"); icon.setAttribute("width", "14"); icon.setAttribute("height", "14"); icon.setAttribute("aria-hidden", "true");
        const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
        path.setAttribute("d", SHAPES[marker]); path.setAttribute("fill", colour);
        icon.append(path);
        const box = make("input", {type: "checkbox", onchange: (event) => {
          if (event.target.checked) map.hiddenGroups.delete(g); else map.hiddenGroups.add(g);
          redraw();
          legend.querySelectorAll("input")[[...legend.querySelectorAll("input")].findIndex((one) => one.dataset.group === String(g))]?.focus();
        }});
        box.dataset.group = g;
        box.checked = !map.hiddenGroups.has(g);
        return make("li", {}, make("label", {}, box, icon, make("span", {class: "text", title: shown(name)}, shown(name)), make("span", {class: "count"}, grouped(counts[g]))),
          make("button", {type: "button", class: "link small only-screen", "aria-label": "Select " + shown(name), onclick: () => choose(rowsWhere((row) => group(row) === g))}, "select"));
      }).filter(Boolean));
    };
    modes.onchange = () => { map.hiddenGroups.clear(); redraw(); };
    allBox.onchange = redraw;
    redraw();
    setUpSelection(element);
    setUpPointer(element);
    document.documentElement.dataset.map = "drawn";
  };
  const choose = (rows) => {
    map.chosen = rows;
    const title = rows.length === 0 ? "No image selected" : rows.length === 1 ? "1 image selected" : grouped(rows.length) + " images selected";
    byId("map-selected-title").textContent = title;
    for (const id of ["map-show", "map-csv", "map-save"]) byId(id).disabled = !rows.length;
    byId("map-files").replaceChildren(...rows.slice(0, 200).map((row) => make("li", {}, shown(nameOf(row)))));
    if (rows.length > 200) byId("map-files").append(make("li", {class: "soft"}, "and " + grouped(rows.length - 200) + " more in the CSV"));
    const inside = new Set(rows);
    for (const {source, renderer} of map.looks) {
      const indices = [];
      if (rows.length) source.data.row.forEach((row, i) => { if (inside.has(row)) indices.push(i); });
      source.selected.indices = indices;
      renderer.muted = rows.length > 0 && !indices.length;
    }
  };
  byId("map-show").onclick = () => list(byId("map-selected-title").textContent, map.chosen);
  byId("map-csv").onclick = () => copy(map.chosen);
  byId("map-save").onclick = () => save(map.chosen);
  const inPolygon = (x, y, xs, ys) => {
    let inside = false;
    for (let i = 0, j = xs.length - 1; i < xs.length; j = i++) {
      if ((ys[i] > y) !== (ys[j] > y) && x < (xs[j] - xs[i]) * (y - ys[i]) / (ys[j] - ys[i]) + xs[i]) inside = !inside;
    }
    return inside;
  };
  const setUpSelection = (element) => {
    map.plot.on_event("selectiongeometry", (event) => {
      if (!event.final) return;
      const {type, x0, x1, y0, y1, x, y} = event.geometry;
      const visible = (row) => !map.hiddenGroups.has(map.group(row));
      // In the region lie also images that are not drawn.
      if (type === "rect") choose(rowsWhere((row) => visible(row) && column.x[row] >= Math.min(x0, x1) && column.x[row] <= Math.max(x0, x1) && column.y[row] >= Math.min(y0, y1) && column.y[row] <= Math.max(y0, y1)));
      else if (type === "poly") choose(rowsWhere((row) => visible(row) && inPolygon(column.x[row], column.y[row], x, y)));
      else if (type === "point") touch(event.geometry);
    });
    map.plot.on_event("reset", () => choose([]));
    map.plot.document.event_manager.subscribed_models.add(map.plot);
  };
  const screen = (row) => {
    const {frame} = map.view, box = map.view.el.getBoundingClientRect();
    return [box.left + frame.x_scale.compute(column.x[row]), box.top + frame.y_scale.compute(column.y[row])];
  };
  // A tap has no pointer that hovers: it shows the image and selects it.
  const touch = ({x, y}) => {
    const {frame} = map.view;
    const [left, top] = [frame.x_scale.compute(x), frame.y_scale.compute(y)];
    let best = -1, least = 400;
    for (const row of map.drawnRows) {
      const far = (frame.x_scale.compute(column.x[row]) - left) ** 2 + (frame.y_scale.compute(column.y[row]) - top) ** 2;
      if (far < least) { least = far; best = row; }
    }
    if (best < 0) { hideTip(); choose([]); return; }
    showTip(best, ...screen(best));
    choose([best]);
  };
  const tip = byId("tip");
  const showTip = (row, left, top) => {
    map.current = row;
    tip.replaceChildren(tile(row));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(left + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = Math.max(4, top + 14 + box.height > innerHeight ? top - box.height - 14 : top + 14) + "px";
  };
  const hideTip = () => { tip.hidden = true; };
  const setUpPointer = (element) => {
    let pointer = [0, 0];
    element.addEventListener("pointermove", (event) => { pointer = [event.clientX, event.clientY]; }, true);
    element.addEventListener("pointerleave", hideTip);
    for (const {source} of map.looks) {
      source.inspect.connect(() => {
        let best = -1, least = Infinity;
        for (const look of map.looks) {
          for (const i of look.source.inspected.indices) {
            const row = look.source.data.row[i];
            const [x, y] = screen(row);
            const far = (x - pointer[0]) ** 2 + (y - pointer[1]) ** 2;
            if (far < least) { least = far; best = row; }
          }
        }
        if (best < 0 || least > 400) hideTip();
        else if (best !== map.current || tip.hidden) showTip(best, ...pointer);
      });
    }
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};
    element.addEventListener("keydown", (event) => {
      const rows = map.drawnRows;
      if (event.key === "Escape") { hideTip(); choose([]); map.mark.data = {x: [], y: []}; return; }
      if (event.key === "Enter" && map.current >= 0) {
        choose(map.chosen.includes(map.current) ? map.chosen.filter((row) => row !== map.current) : [...map.chosen, map.current]);
        return;
      }
      const move = moves[event.key];
      if (!move || !rows.length) return;
      event.preventDefault();
      let next = map.current;
      if (next < 0) next = rows[0];
      else {
        let least = Infinity;
        for (const row of rows) {
          const dx = column.x[row] - column.x[map.current], dy = column.y[row] - column.y[map.current];
          const along = dx * move[0] + dy * move[1], aside = Math.abs(dx * move[1]) + Math.abs(dy * move[0]);
          if (along > 0 && along + 2 * aside < least && along >= aside / 2) { least = along + 2 * aside; next = row; }
        }
      }
      map.mark.data = {x: [column.x[next]], y: [column.y[next]]};
      showTip(next, ...screen(next));
      byId("told").textContent = "";
    });
    element.addEventListener("blur", hideTip);
  };

  // For tests: where a row is drawn.
  window.featxReport = {screen, column, nameOf};
  document.documentElement.dataset.ready = "yes";
  performance.mark("ready");
  whenIdle(drawNext);
})();
