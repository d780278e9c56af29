// One beat becomes RATIO beats, its least significant part first.
module edgesdk_narrow #(
    parameter integer WIDTH = 8,
    parameter integer RATIO = 2,
    parameter integer CBITS = 1
) (
    input  wire                   clk,
    input  wire                   rst,
    input  wire                   s_valid,
    output wire                   s_ready,
    input  wire [WIDTH*RATIO-1:0] s_data,
    output reg                    m_valid,
    input  wire                   m_ready,
    output wire [WIDTH-1:0]       m_data
);
    localparam integer LAST_COUNT = RATIO - 1;
    localparam [CBITS-1:0] LAST = LAST_COUNT[CBITS-1:0];

    reg [WIDTH*RATIO-1:0] left;
    reg [CBITS-1:0]       count;

    assign m_data = left[WIDTH-1:0];
    assign s_ready = !m_valid || (m_ready && count == LAST);

    always @(posedge clk) begin
        if (s_ready) begin
            left <= s_data;
            m_valid <= s_valid;
            count <= {CBITS{1'b0}};
        end else if (m_ready) begin
            left <= {left[WIDTH-1:0], left[WIDTH*RATIO-1:WIDTH]};
            count <= count + 1'b1;
        end
        if (rst) begin
            m_valid <= 1'b0;
            count <= {CBITS{1'b0}};
        end
    end
endmodule
