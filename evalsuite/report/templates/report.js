// The page is whole without this: it only filters examples and sorts and filters the table of labels.
(() => {
  "use strict";
  document.documentElement.classList.add("js");
  const one = (selector) => document.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const search = one("#example-search"), label = one("#example-label");
  const filterExamples = () => {
    const words = search.value.trim().toLowerCase(), wanted = label ? label.value : "";
    for (const group of all(".examples")) {
      let shown = 0;
      for (const example of all(".example", group)) {
        const fits = (!wanted || example.dataset.label === wanted)
          && (!words || example.textContent.toLowerCase().includes(words));
        example.hidden = !fits;
        shown += fits;
      }
      for (const more of all(".more", group)) if (words || wanted) more.open = true;
      group.hidden = Boolean(words || wanted) && shown === 0;
    }
  };
  if (search) search.addEventListener("input", filterExamples);
  if (label) label.addEventListener("change", filterExamples);

  const table = one("#labels"), find = one("#label-search");
  if (!table) return;
  const rows = all("tbody tr", table);
  if (find) find.addEventListener("input", () => {
    const words = find.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(words);
  });
  all("th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const order = (a, b) => isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
      rows.sort((a, b) => (up ? order(a, b) : order(b, a)));
      table.tBodies[0].append(...rows);
    });
  });
})();
