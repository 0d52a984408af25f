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
  var held = null;
  frame.addEventListener("pointerdown", function (event) {
    if (event.pointerType === "touch") return; // a finger scrolls the page; the buttons zoom
    held = { x: event.clientX, y: event.clientY, box: current() };
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", function (event) {
    if (!held) return;
    var scale = Math.max(held.box.width / frame.clientWidth, held.box.height / frame.clientHeight);
    show({ x: held.box.x - (event.clientX - held.x) * scale, y: held.box.y - (event.clientY - held.y) * scale,
      width: held.box.width, height: held.box.height });
  });
  frame.addEventListener("pointerup", function () { held = null; });
  frame.addEventListener("pointercancel", function () { held = null; });
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
