// Says how long a duration is; `ms` comes from package.json.
const ms = require("ms");

module.exports.handler = async (request) => {
  const text = request.query.for || "2 days";
  console.log(`asked for ${text}`);
  return { for: text, milliseconds: ms(text) };
};
