"use strict";
// Tables of class "sort": a click on a heading sorts by its column; a second click reverses the order.
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        // Rows without a number are last in both orders.
        if (x === "\u2013" || y === "\u2013") return (x === "\u2013") - (y === "\u2013");
        const words = x.trim() === "" || y.trim() === "" || Number.isNaN(Number(x)) || Number.isNaN(Number(y));
        const order = words ? x.localeCompare(y, undefined, { numeric: true }) : Number(x) - Number(y);
        return up ? order : -order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  });
}
