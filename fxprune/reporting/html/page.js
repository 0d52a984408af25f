(function () {
  "use strict";
  function value(row, place) {
    var text = row.cells[place].textContent.trim();
    var number = parseFloat(row.cells[place].dataset.value || text);
    return isNaN(number) ? text.toLowerCase() : number;
  }
  document.querySelectorAll("table").forEach(function (table) {
    if (!table.tHead) return;
    var body = table.tBodies[0];
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, place) {
      head.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") !== "descending";
        Array.prototype.forEach.call(table.tHead.rows[0].cells, function (cell) { cell.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        Array.prototype.slice.call(body.rows).sort(function (a, b) {
          var x = value(a, place), y = value(b, place);
          return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
        }).forEach(function (row) { body.appendChild(row); });
      });
    });
  });
  document.querySelectorAll("input.filter").forEach(function (field) {
    field.addEventListener("input", function () {
      var wanted = field.value.toLowerCase();
      document.querySelectorAll("#" + field.dataset.rows + " tbody tr").forEach(function (row) {
        row.hidden = row.textContent.toLowerCase().indexOf(wanted) < 0;
      });
    });
  });
})();
(function () {
  "use strict";
  var card = document.getElementById("chosen");
  if (!card) return;
  function choose(wanted, origin) {
    var row = null, box = null;
    document.querySelectorAll("[data-group]").forEach(function (element) {
      var hit = wanted !== "" && (" " + element.dataset.group + " ").indexOf(" " + wanted + " ") >= 0;
      element.classList.toggle("chosen", hit);
      if (hit && element.tagName === "TR") row = element;
      if (hit && element.tagName === "g") box = box || element;
    });
    document.body.classList.toggle("choosing", row !== null);
    card.hidden = row === null;
    if (!row) return;
    card.querySelector("code").textContent = row.dataset.name;
    card.querySelector("a").href = "#" + row.id;
    if (box && !origin.closest("#graph")) document.getElementById("graph").dispatchEvent(new CustomEvent("chosen", { detail: box }));
  }
  document.addEventListener("click", function (event) {
    var hit = event.target.closest("[data-group]");
    if (hit && hit.dataset.group !== "") choose(hit.dataset.group.split(" ")[0], hit);
  });
  document.addEventListener("keydown", function (event) { if (event.key === "Escape") choose("", card); });
  card.querySelector("button").addEventListener("click", function () { choose("", card); });
})();
(function () {
  "use strict";
  var frame = document.getElementById("graph");
  if (!frame) return;
  var svg = frame.querySelector("svg");
  var whole = svg.viewBox.baseVal;
  var all = { x: whole.x, y: whole.y, width: whole.width, height: whole.height };
  svg.removeAttribute("width");
  svg.removeAttribute("height");
  svg.setAttribute("preserveAspectRatio", "xMidYMin meet");

  function show(box) {
    svg.setAttribute("viewBox", [box.x, box.y, box.width, box.height].join(" "));
  }
  function current() {
    var box = svg.viewBox.baseVal;
    return { x: box.x, y: box.y, width: box.width, height: box.height };
  }
  function zoom(factor, u, v) {
    var box = current();
    var width = Math.min(Math.max(box.width * factor, 60), 4 * all.width);
    var height = box.height * (width / box.width);
    show({ x: box.x + (box.width - width) * u, y: box.y + (box.height - height) * v, width: width, height: height });
  }
  function begin() {
    // The beginning of the network at a readable size.
    var width = Math.max(420, Math.min(all.width, frame.clientWidth), frame.clientWidth / 1.4);
    show({ x: all.x + (all.width - width) / 2, y: all.y, width: width, height: width * frame.clientHeight / frame.clientWidth });
  }
  frame.addEventListener("wheel", function (event) {
    if (!event.ctrlKey && !event.metaKey) return; // the wheel alone scrolls the page
    event.preventDefault();
    var r = frame.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 0.85 : 1.18, (event.clientX - r.left) / r.width, (event.clientY - r.top) / r.height);
  }, { passive: false });
  // One finger scrolls the page; a mouse or two fingers move the picture, and fingers that part zoom it.
  var held = {}, from = null;
  function grip() {
    var places = Object.keys(held).map(function (id) { return held[id]; }), two = places[1] || places[0];
    return { x: (places[0].x + two.x) / 2, y: (places[0].y + two.y) / 2, box: current(),
      apart: Math.hypot(places[0].x - two.x, places[0].y - two.y) };
  }
  function release(event) {
    delete held[event.pointerId];
    from = Object.keys(held).length ? grip() : null;
  }
  frame.addEventListener("pointerdown", function (event) {
    held[event.pointerId] = { x: event.clientX, y: event.clientY, touch: event.pointerType === "touch" };
    from = grip();
  });
  frame.addEventListener("pointermove", function (event) {
    if (!held[event.pointerId]) return;
    held[event.pointerId].x = event.clientX;
    held[event.pointerId].y = event.clientY;
    var now = grip();
    if (held[event.pointerId].touch ? !now.apart : Math.hypot(now.x - from.x, now.y - from.y) < 4) return;
    frame.setPointerCapture(event.pointerId);
    if (now.apart && from.apart) {
      var r = frame.getBoundingClientRect();
      zoom(from.apart / now.apart, (now.x - r.left) / r.width, (now.y - r.top) / r.height);
      from = { x: from.x, y: from.y, box: current(), apart: now.apart };
    }
    var scale = Math.max(from.box.width / frame.clientWidth, from.box.height / frame.clientHeight);
    show({ x: from.box.x - (now.x - from.x) * scale, y: from.box.y - (now.y - from.y) * scale,
      width: from.box.width, height: from.box.height });
    if (now.apart) from = grip();
  });
  ["pointerup", "pointercancel"].forEach(function (name) { frame.addEventListener(name, release); });
  frame.addEventListener("chosen", function (event) {
    var box = current(), first = event.detail.querySelector("rect");
    var x = parseFloat(first.getAttribute("x")), y = parseFloat(first.getAttribute("y"));
    show({ x: x - box.width / 2 + 100, y: y - box.height / 4, width: box.width, height: box.height });
  });
  document.getElementById("closer").addEventListener("click", function () { zoom(0.7, 0.5, 0.5); });
  document.getElementById("farther").addEventListener("click", function () { zoom(1.43, 0.5, 0.5); });
  document.getElementById("whole").addEventListener("click", function () { show(all); });
  document.getElementById("start").addEventListener("click", begin);
  document.getElementById("find").addEventListener("input", function (event) {
    var wanted = event.target.value.toLowerCase();
    svg.querySelectorAll("g").forEach(function (node) {
      var title = node.querySelector("title").textContent.toLowerCase();
      node.classList.toggle("dim", wanted !== "" && title.indexOf(wanted) < 0);
    });
  });
  begin();
})();
